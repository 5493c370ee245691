use super::*;

#[test]
fn marks_are_coalesced_and_received_alone_waits_for_a_heartbeat() {
    let report = Report::default();
    let now = Instant::now();
    report.received(10);
    assert!(matches!(report.next(now), Next::Look));
    let marks = |received| Message::Marks(Marks { received, written: 0, durable: 0 });
    assert_eq!(report.heartbeat(), [marks(10)]);
    assert_eq!(report.heartbeat(), [Message::Heartbeat(0)]);
    report.digested(7);
    report.received(11);
    assert_eq!(report.heartbeat(), [Message::Heartbeat(7), marks(11)]);
    assert_eq!(report.heartbeat(), [Message::Heartbeat(7)]);
    report.received(30);
    report.written(20);
    report.written(25);
    report.durable(20);
    let Next::Say(Message::Marks(marks)) = report.next(now) else { panic!() };
    assert_eq!(marks, Marks { received: 30, written: 25, durable: 20 });
    assert!(matches!(report.next(now), Next::Look));
    report.kept(5);
    report.written(30);
    report.durable(30);
    report.finish();
    assert!(matches!(report.next(now), Next::Say(Message::Kept(5))), "before what is durable after it");
    assert!(matches!(report.next(now), Next::Say(Message::Marks(_))));
    assert!(matches!(report.next(now), Next::End));
}

#[test]
fn marks_of_a_bulk_go_together_and_its_last_one_at_once() {
    let report = Report::default();
    let far = || Instant::now() + Duration::from_secs(60);
    report.received(9);
    report.written_of_bulk(1);
    assert!(matches!(report.next(far()), Next::Say(Message::Marks(marks)) if marks.written == 1));
    report.written_of_bulk(2);
    assert!(matches!(report.next(Instant::now()), Next::Look), "two at once");
    let began = Instant::now();
    assert!(matches!(report.next(far()), Next::Say(Message::Marks(marks)) if marks.written == 2));
    assert!(began.elapsed() < Duration::from_secs(30));
    report.written_of_bulk(3);
    report.written(3);
    assert!(matches!(report.next(Instant::now()), Next::Say(Message::Marks(marks)) if marks.written == 3));
}

#[test]
fn the_first_failure_is_kept_and_whoever_waits_for_room_is_let_go() {
    let report = Report::default();
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| while report.put(Message::Inventory(Vec::new())) {});
        while report.state.lock().messages.len() < MESSAGES_MAX {
            std::thread::yield_now();
        }
        report.fail(Error::ShuttingDown);
        putting.join().unwrap();
    });
    report.fail(Error::connection("second", io::Error::other("second")));
    assert!(matches!(report.failure(), Some(Error::ShuttingDown)));
}

#[test]
fn a_slow_reader_is_no_silence_and_time_stands_still_while_we_do() {
    let report = Report::default();
    let mut silence = Silence::new(Some(Duration::ZERO));
    for _ in 0..10 {
        assert!(!silence.look(&report), "nobody was reading");
    }
    report.reading_since.store(7, Ordering::Relaxed);
    let silent = (0..10).position(|_| silence.look(&report)).unwrap();
    assert_eq!(silent, QUARTERS as usize, "quarters are counted from when the read was first seen");
    report.reading_since.store(8, Ordering::Relaxed);
    assert!(!silence.look(&report));
}

#[test]
fn a_stalled_leader_is_told_from_a_stalled_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _leader = listener.accept().unwrap();
    let report = Report::default();
    let mut silence = Silence::new(Some(Duration::from_secs(3)));
    let said = silence.judge(&report, &socket).unwrap().to_string();
    assert!(said.contains("nothing was heard for 3.0s; the leader is stalled"), "{said}");
    // As much as the other side's system takes, and more.
    socket.set_nonblocking(true).unwrap();
    while (&socket).write(&[0; 65536]).is_ok() {}
    let said = silence.judge(&report, &socket).unwrap().to_string();
    assert!(said.contains("the network to the leader is stalled"), "{said}");
    report.reading_since.store(9, Ordering::Relaxed);
    assert!(silence.judge(&report, &socket).is_none(), "something was read meanwhile");
}
