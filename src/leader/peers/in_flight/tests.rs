use super::*;

fn attached() -> InFlight {
    let mut in_flight = InFlight::new(None, Instant::now());
    in_flight.attached();
    in_flight.sending(0, Some(100), Instant::now(), Instant::now());
    in_flight
}

fn send(in_flight: &mut InFlight, bytes: u64, position: u64) {
    in_flight.sending(bytes, Some(position), Instant::now(), Instant::now());
}

fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

fn marks(in_flight: &InFlight) -> (u64, u64, u64) {
    let (_, has) = in_flight.has().unwrap();
    (has.received, has.written, has.durable)
}

#[test]
fn bytes_are_mapped_to_positions_of_what_was_wholly_received_and_written() {
    let mut in_flight = attached();
    send(&mut in_flight, 10, 110);
    send(&mut in_flight, 10, 120);
    in_flight.asking_for_durable(120);
    in_flight.received(19).unwrap();
    assert_eq!(marks(&in_flight), (110, 100, 0));
    in_flight.acknowledge(10, Instant::now()).unwrap();
    in_flight.received(20).unwrap();
    assert_eq!(marks(&in_flight), (120, 110, 0));
    in_flight.acknowledge(10, Instant::now()).unwrap();
    in_flight.durable(19);
    assert_eq!(marks(&in_flight), (120, 120, 0));
    in_flight.durable(20);
    assert_eq!(marks(&in_flight), (120, 120, 120));
    // The request itself, which is last.
    in_flight.asking_for_durable(155);
    send(&mut in_flight, 35, 155);
    in_flight.durable(20);
    assert_eq!(marks(&in_flight), (155, 155, 155));
    assert!(in_flight.received(56).is_err() && in_flight.acknowledge(36, Instant::now()).is_err());
}

#[test]
fn of_more_requests_than_are_remembered_the_last_counts() {
    let mut in_flight = attached();
    for request in 0..=PIECES_MAX as u64 {
        send(&mut in_flight, 10, 110 + 10 * request);
        in_flight.asking_for_durable(110 + 10 * request);
    }
    let (sent, last) = (in_flight.sent, 110 + 10 * PIECES_MAX as u64);
    in_flight.acknowledge(sent, Instant::now()).unwrap();
    in_flight.durable(sent);
    assert_eq!(marks(&in_flight), (last, last, last));
}

#[test]
fn what_was_void_counts_once_it_is_made_up_for() {
    let mut in_flight = attached();
    send(&mut in_flight, 10, 110);
    in_flight.void(&path("a"), 110, 100);
    send(&mut in_flight, 10, 120);
    in_flight.acknowledge(20, Instant::now()).unwrap();
    assert_eq!(marks(&in_flight), (110, 110, 0));
    in_flight.mended(&path("a"), 100, 150);
    send(&mut in_flight, 10, 130);
    send(&mut in_flight, 20, 150);
    in_flight.acknowledge(10, Instant::now()).unwrap();
    assert_eq!(marks(&in_flight), (110, 110, 0));
    in_flight.acknowledge(20, Instant::now()).unwrap();
    assert_eq!(marks(&in_flight), (150, 150, 0));
}

#[test]
fn what_was_durable_before_it_was_made_up_for_does_not_count_as_durable_after() {
    for answered_late in [false, true] {
        let mut in_flight = attached();
        in_flight.void(&path("a"), 100, 100);
        send(&mut in_flight, 20, 120);
        in_flight.asking_for_durable(120);
        in_flight.mended(&path("a"), 120, 150);
        send(&mut in_flight, 30, 150);
        if !answered_late {
            in_flight.durable(20);
        }
        in_flight.acknowledge(50, Instant::now()).unwrap();
        in_flight.durable(20);
        assert_eq!(marks(&in_flight), (150, 150, 100));
        in_flight.asking_for_durable(150);
        in_flight.durable(50);
        assert_eq!(marks(&in_flight), (150, 150, 150));
    }
}

#[test]
fn it_is_asked_to_make_durable_what_makes_up_for_what_it_lacked_where_nothing_else_would() {
    let mended = |from, durable: Option<u64>, asked: &[u64]| {
        let mut in_flight = InFlight { durable, ..attached() };
        in_flight.void(&path("a"), from, 120);
        in_flight.void(&path("b"), from, 120);
        in_flight.mended(&path("a"), 120, 150);
        in_flight.mended(&path("b"), 120, 150);
        // Also if that is asked after it was mended.
        asked.iter().for_each(|position| in_flight.asking_for_durable(*position));
        send(&mut in_flight, 50, 150);
        assert!(!in_flight.is_to_flush(), "not yet");
        in_flight.acknowledge(50, Instant::now()).unwrap();
        in_flight.is_to_flush()
    };
    assert!(mended(0, Some(100), &[]) && mended(110, Some(120), &[]));
    assert!(mended(110, Some(110), &[120]) && mended(110, None, &[120]));
    assert!(!mended(110, None, &[]) && !mended(110, Some(110), &[]) && !mended(110, Some(120), &[160]));
}

#[test]
fn what_was_void_of_one_file_is_not_made_up_for_by_another() {
    let mut in_flight = attached();
    in_flight.void(&path("unreadable"), 0, 100);
    in_flight.void(&path("gone"), 100, 100);
    in_flight.mended(&path("gone"), 100, 100);
    in_flight.mended(&path("of others"), 100, 100);
    assert!(marks(&in_flight) == (0, 0, 0) && in_flight.lacks_from_before());
    in_flight.mended(&path("unreadable"), 100, 110);
    assert!(marks(&in_flight) == (0, 0, 0) && in_flight.lacks_from_before());
    send(&mut in_flight, 10, 110);
    in_flight.acknowledge(10, Instant::now()).unwrap();
    assert!(marks(&in_flight) == (110, 110, 0) && !in_flight.lacks_from_before());
    in_flight.void(&path("unreadable"), 110, 100);
    assert!(!in_flight.lacks_from_before());
    in_flight.detached();
    assert!(in_flight.lacks_from_before());
}

#[test]
fn what_was_announced_anew_and_could_not_be_sent_either_is_not_made_up_for() {
    let mut in_flight = attached();
    in_flight.void(&path("a"), 100, 100);
    // Announced anew after 120, up to 150; and not sent.
    in_flight.void(&path("a"), 120, 150);
    in_flight.mended(&path("a"), 120, 150);
    send(&mut in_flight, 50, 150);
    in_flight.acknowledge(50, Instant::now()).unwrap();
    assert_eq!(marks(&in_flight), (100, 100, 0));
    in_flight.mended(&path("a"), 150, 180);
    send(&mut in_flight, 30, 180);
    in_flight.acknowledge(30, Instant::now()).unwrap();
    assert_eq!(marks(&in_flight), (180, 180, 0));
}

#[test]
fn what_a_detached_follower_made_durable_says_nothing_of_what_it_is_sent_after() {
    let mut in_flight = attached();
    send(&mut in_flight, 10, 110);
    in_flight.asking_for_durable(110);
    in_flight.detached();
    in_flight.sending(5, None, Instant::now(), Instant::now());
    in_flight.acknowledge(15, Instant::now()).unwrap();
    in_flight.durable(15);
    assert!(in_flight.has().is_none() && in_flight.durable_position().is_none());
}

#[test]
fn it_is_whole_where_what_was_void_before_it_attached_is_made_up_for() {
    let mut in_flight = attached();
    assert!(in_flight.is_whole_at(100));
    in_flight.void(&path("a"), 0, 100);
    assert!(!in_flight.is_whole_at(1000));
    in_flight.mended(&path("a"), 100, 150);
    assert!(!in_flight.is_whole_at(149) && in_flight.is_whole_at(150));
    in_flight.void(&path("a"), 160, 100);
    assert!(in_flight.is_whole_at(170), "that is of the stream");
}

#[test]
fn what_acknowledgements_of_1_0_0_say_is_a_matter_of_declaration() {
    for (declared, expected) in [
        (Durability::Received, (110, 0, 0)),
        (Durability::Written, (110, 110, 0)),
        (Durability::Durable, (110, 110, 110)),
    ] {
        let mut in_flight = InFlight { v1_acks: Some(declared), ..attached() };
        send(&mut in_flight, 10, 110);
        in_flight.acknowledge(10, Instant::now()).unwrap();
        assert_eq!(marks(&in_flight), expected, "{declared}");
    }
}
