use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::super::socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use super::super::thread;
use super::super::time::Instant;
use super::super::world::{self, Outcome, Policy, ProcessId, Settings, World, run};
use super::*;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const DRIVER: ProcessId = ProcessId(0);

fn simulate(seed: u64, root: impl FnOnce() + Send + 'static) -> Outcome {
    let policy = if seed.is_multiple_of(2) {
        Policy::Random { change: 0.2 }
    } else {
        Policy::Priorities { changes: 3, within: 500 }
    };
    run(Settings { seed, policy, stalls: 0.0, trace: false }, root)
}

/// For many seeds; the driver is on host A.
fn for_seeds(seeds: u64, root: impl Fn() + Send + Sync + Clone + 'static) {
    for seed in 0..seeds {
        let root = root.clone();
        let outcome = simulate(seed, move || {
            network(|network| network.set_host(DRIVER, A));
            root();
        });
        assert_eq!(outcome.failure, None, "seed {seed}");
    }
}

fn network<R>(use_it: impl FnOnce(&Network) -> R) -> R {
    use_it(world::current().network())
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn process_on(host: IpAddr) -> ProcessId {
    let process = world::current().new_process("peer");
    network(|network| network.set_host(process, host));
    process
}

/// Runs `serve` in a process on host B, with a listener at port 7; returns once that listens.
fn serve_on_b(serve: impl FnOnce(TcpListener) + Send + 'static) -> (ProcessId, SocketAddr) {
    let process = process_on(B);
    let (ready, is_ready) = super::super::channel::bounded(1);
    world::current().start_process(process, move || {
        let listener = TcpListener::bind("0.0.0.0:7").unwrap();
        ready.send(()).unwrap();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serve(listener))).is_err() {
            world::current().fail("the peer panicked".into());
        }
    });
    is_ready.recv().unwrap();
    (process, SocketAddr::new(B, 7))
}

/// A connection from A to B, whose end there does nothing, for ever.
fn to_idle_b() -> (ProcessId, TcpStream) {
    let (process, at) = serve_on_b(|listener| {
        let _open = listener.accept().unwrap();
        thread::sleep(secs(1_000_000));
    });
    let client = TcpStream::connect(at).unwrap();
    thread::sleep(millis(100));
    (process, client)
}

/// Both ends, of one process.
fn pair() -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    (listener, client, server)
}

fn settle() {
    thread::sleep(millis(50));
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) ^ (at >> 8)) as u8).collect()
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

/// What a test does with links between A and B.
type Disturb = fn();

/// Sends both ways at once, in pieces of many sizes; both must arrive whole.
fn exchange(length: usize) {
    let (_, at) = serve_on_b(move |listener| {
        let (mut socket, _) = listener.accept().unwrap();
        let mut writing = socket.try_clone().unwrap();
        let writer = thread::spawn(move || {
            for piece in pattern(length).chunks(3001) {
                writing.write_all(piece).unwrap();
            }
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        assert!(got == pattern(length), "{} bytes", got.len());
        writer.join().unwrap();
    });
    let mut socket = TcpStream::connect(at).unwrap();
    let mut writing = socket.try_clone().unwrap();
    let writer = thread::spawn(move || {
        writing.write_all(&pattern(length)).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let (mut got, mut piece) = (Vec::<u8>::new(), [0; 777]);
    loop {
        match socket.read(&mut piece).unwrap() {
            0 => break,
            bytes => got.extend(&piece[..bytes]),
        }
    }
    assert!(got == pattern(length), "{} bytes", got.len());
    writer.join().unwrap();
    // What was written may still be on its way.
    let moved = (0..10_000).find_map(|_| {
        thread::sleep(millis(100));
        let moved = network(|network| network.connections()[0]);
        (moved.to_server.read == length as u64).then_some(moved)
    });
    let moved = moved.expect("it arrives");
    for direction in [moved.to_server, moved.to_client] {
        let all = length as u64;
        assert_eq!((direction.written, direction.arrived, direction.read), (all, all, all));
        assert!(direction.on_the_wire >= all);
    }
}

#[test]
fn what_waits_for_a_slow_link_arrives_soon_once_it_is_slow_no_more() {
    for_seeds(25, || {
        network(|network| network.set_links(A, B, |link| link.bandwidth = Some(100)));
        thread::spawn(|| {
            thread::sleep(millis(1000));
            network(|network| network.set_links(A, B, |link| link.bandwidth = None));
        });
        let began = Instant::now();
        exchange(20_000);
        assert!(began.elapsed() < millis(3000), "{:?}", began.elapsed());
    });
}

#[test]
fn a_stream_arrives_whole_and_in_order_over_every_kind_of_link() {
    let disturb: [(Disturb, usize); 6] = [
        (|| {}, 300_000),
        (|| network(|network| network.set_links(A, B, |link| link.latency = (millis(1), millis(900)))), 100_000),
        (|| network(|network| network.set_links(A, B, |link| link.bandwidth = Some(50_000))), 100_000),
        (|| network(|network| network.trickle(A, B, 1, millis(3))), 1_500),
        (
            || {
                network(|network| {
                    network.configure(|settings| (settings.send_buffer, settings.receive_buffer) = (700, 10));
                });
            },
            4_000,
        ),
        (
            || {
                network(|network| network.set_links(A, B, |link| link.bandwidth = Some(50_000)));
                thread::spawn(|| {
                    for round in 0..4 {
                        thread::sleep(millis(700));
                        network(|network| match round {
                            0 => network.cut(A, B),
                            1 => network.set_link(A, B, |link| link.cut = true),
                            2 => network.set_link(B, A, |link| link.cut = true),
                            _ => network.cut(B, A),
                        });
                        thread::sleep(millis(300 + 900 * round));
                        network(|network| network.heal(A, B));
                    }
                });
            },
            200_000,
        ),
    ];
    for (disturb, length) in disturb {
        for_seeds(25, move || {
            disturb();
            exchange(length);
        });
    }
}

#[test]
fn a_write_timeout_fires_when_the_peer_stops_reading_and_what_was_taken_before_is_told() {
    for_seeds(40, || {
        let (_, mut client) = to_idle_b();
        client.set_write_timeout(Some(secs(2))).unwrap();
        let began = Instant::now();
        let mut taken = client.write(&vec![7; 1 << 20]).unwrap();
        // Who is blocked goes on only when a third of the buffer is free.
        assert!(taken > (64 << 10) + (64 << 10) * 2 / 3 && taken <= 128 << 10, "{taken}");
        assert!(began.elapsed() >= secs(2) && began.elapsed() < secs(3));
        client.set_nonblocking(true).unwrap();
        while let Ok(more) = client.write(&[7; 1000]) {
            taken += more;
        }
        // Both buffers are full.
        assert_eq!((taken, send_queue_bytes(&client)), (128 << 10, Some(64 << 10)));
        client.set_nonblocking(false).unwrap();
        let began = Instant::now();
        assert_eq!(kind(client.write(&[7])), ErrorKind::WouldBlock);
        assert!(began.elapsed() >= secs(2) && began.elapsed() < secs(3));
    });
}

#[test]
fn who_is_blocked_in_a_write_goes_on_only_when_a_third_of_the_buffer_is_free() {
    for_seeds(20, || {
        network(|network| network.configure(|settings| settings.receive_buffer = 20_000));
        let (_listener, client, mut server) = pair();
        client.set_nonblocking(true).unwrap();
        // Until both buffers are full: acknowledgements make room once more.
        for _ in 0..2 {
            while (&client).write(&[1; 1000]).is_ok() {}
            settle();
        }
        client.set_nonblocking(false).unwrap();
        client.set_write_timeout(Some(secs(2))).unwrap();
        let client = Arc::new(client);
        let writing = client.clone();
        let writer = thread::spawn(move || (&*writing).write(&[1]));
        thread::sleep(millis(100));
        server.read_exact(&mut [0; 20_000]).unwrap();
        assert_eq!(kind(writer.join().unwrap()), ErrorKind::WouldBlock);
        client.set_nonblocking(true).unwrap();
        assert_eq!((&*client).write(&[1; 1000]).unwrap(), 1000);
    });
}

#[test]
fn what_arrived_without_being_acknowledged_arrives_once() {
    for_seeds(20, || {
        let (_, at) = serve_on_b(|listener| {
            let mut got = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"abcdefghi");
        });
        let mut client = TcpStream::connect(at).unwrap();
        settle();
        network(|network| network.set_link(B, A, |link| link.cut = true));
        client.write_all(b"abc").unwrap();
        settle();
        client.write_all(b"defghi").unwrap();
        network(|network| network.heal(A, B));
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        let moved = network(|network| network.connections()[0].to_server);
        assert_eq!((moved.arrived, moved.on_the_wire), (9, 12));
    });
}

#[test]
fn a_read_timeout_fires_and_the_socket_goes_on() {
    for_seeds(20, || {
        let (_listener, mut client, mut server) = pair();
        client.set_read_timeout(Some(millis(300))).unwrap();
        let began = Instant::now();
        assert_eq!(kind(client.peek(&mut [0])), ErrorKind::WouldBlock);
        assert!(began.elapsed() >= millis(300) && began.elapsed() < millis(400));
        server.write_all(b"later").unwrap();
        let mut buffer = [0; 9];
        assert_eq!(client.peek(&mut buffer).unwrap(), 5);
        assert_eq!(client.read(&mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"later");
        assert_eq!(kind(client.set_read_timeout(Some(Duration::ZERO))), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_shutdown_from_another_thread_wakes_who_reads_writes_accepts_and_connects() {
    for_seeds(60, || {
        let (listener, client, server) = pair();
        let (client, listener) = (Arc::new(client), Arc::new(listener));
        let (reading, writing, accepting) = (client.clone(), client.clone(), listener.clone());
        let reader = thread::spawn(move || (&*reading).read(&mut [0]));
        let writer = thread::spawn(move || (&*writing).write_all(&vec![0; 1 << 20]));
        let accepter = thread::spawn(move || accepting.accept().map(|_| ()));
        thread::sleep(millis(20));
        client.shutdown(Shutdown::Both).unwrap();
        SockRef::from(&*listener).shutdown(Shutdown::Both).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), 0);
        assert_eq!(writer.join().unwrap().unwrap_err().raw_os_error(), Some(Errno::PIPE.raw_os_error()));
        assert_eq!(accepter.join().unwrap().unwrap_err().raw_os_error(), Some(Errno::INVAL.raw_os_error()));
        drop(server);
        process_on(B);
        network(|network| network.cut(A, B));
        let socket = Arc::new(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
        let connecting = socket.clone();
        let connect = thread::spawn(move || {
            connecting.connect_timeout(&SockAddr::from(SocketAddr::new(B, 7)), secs(60)).unwrap_err().kind()
        });
        thread::sleep(millis(20));
        let _ = socket.shutdown(Shutdown::Both);
        let began = Instant::now();
        assert_eq!(connect.join().unwrap(), ErrorKind::ConnectionReset);
        assert!(began.elapsed() < secs(1));
    });
}

/// The same calls to Linux's sockets and to the world's: what each of them came to.
macro_rules! compared {
    ($name:ident, $net:path, $socket2:path, $sleep:path) => {
        fn $name() -> Vec<String> {
            use $net::{TcpListener, TcpStream};
            use $socket2::{Domain, SockAddr, SockRef, Socket, Type};
            let mut said: Vec<String> = Vec::new();
            let mut note = |what: &str, result: io::Result<usize>| {
                let result = result.map_err(|error| error.raw_os_error().map_or(error.to_string(), |n| n.to_string()));
                said.push(format!("{what}: {result:?}"));
            };
            let settle = || $sleep(Duration::from_millis(30));
            let pair = || {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let server = listener.accept().unwrap().0;
                for end in [&client, &server] {
                    end.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                }
                (listener, client, server)
            };
            let buffer = &mut [0; 16];
            let is_done = |result: io::Result<()>| result.map(|()| 0);

            let (_l, mut client, mut server) = pair();
            server.write_all(b"hello").unwrap();
            client.write_all(b"x").unwrap();
            settle();
            drop(server);
            settle();
            for _ in 0..3 {
                note("read after a reset with something buffered", client.read(buffer));
            }
            note("write then", client.write(b"x"));
            note("shutdown then", is_done(client.shutdown(std::net::Shutdown::Both)));

            let (_l, mut client, server) = pair();
            client.write_all(b"x").unwrap();
            settle();
            drop(server);
            settle();
            note("write after a reset", client.write(b"x"));
            note("again", client.write(b"x"));
            note("read", client.read(buffer));

            let (_l, mut client, server) = pair();
            drop(server);
            settle();
            note("read after a close", client.read(buffer));
            note("write", client.write(b"x"));
            settle();
            note("write again", client.write(b"x"));
            note("read", client.read(buffer));
            note("shutdown", is_done(client.shutdown(std::net::Shutdown::Both)));

            let (_l, mut client, mut server) = pair();
            client.shutdown(std::net::Shutdown::Read).unwrap();
            note("read after shutting down reading", client.read(buffer));
            server.write_all(b"abc").unwrap();
            settle();
            note("with something sent", client.read(buffer));
            note("and then", client.read(buffer));
            note("write", client.write(b"x"));

            let (_l, mut client, mut server) = pair();
            server.write_all(b"abc").unwrap();
            settle();
            client.shutdown(std::net::Shutdown::Both).unwrap();
            note("read after shutting down both", client.read(buffer));
            note("again", client.read(buffer));
            note("write", client.write(b"x"));
            note("shutdown again", is_done(client.shutdown(std::net::Shutdown::Both)));
            settle();
            note("the peer writes", server.write(b"q"));
            settle();
            note("the peer writes again", server.write(b"q"));
            note("the peer reads", server.read(buffer));

            let (_l, mut client, mut server) = pair();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            settle();
            note("the peer of a half-closed one reads", server.read(buffer));
            note("and writes", server.write(b"xyz"));
            settle();
            note("which is read", client.read(buffer));
            note("silence", client.read(buffer));
            note("write to what is half-closed", client.write(b"x"));

            let (_l, client, mut server) = pair();
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            settle();
            note("read after a lingerless close", server.read(buffer));

            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            note("shutdown of a new one", is_done(socket.shutdown(std::net::Shutdown::Both)));
            let address = _l.local_addr().unwrap();
            let connected = socket.connect_timeout(&SockAddr::from(address), Duration::from_secs(5));
            note("connect then", is_done(connected));

            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
            let at = listener.local_addr().unwrap().as_socket().unwrap();
            note("connect to what does not listen", TcpStream::connect(at).map(|_| 0));
            note("accept from it", listener.accept().map(|_| 0));
            listener.listen(1).unwrap();
            let mut clients = Vec::new();
            for _ in 0..4 {
                let client = TcpStream::connect_timeout(&at, Duration::from_millis(300));
                note("connect to a backlog of one", client.as_ref().map(|_| 0).map_err(|e| e.kind().into()));
                clients.extend(client);
                settle();
            }
            note("bind what is taken", TcpListener::bind(at).map(|_| 0));
            note("listener shut for writing", is_done(listener.shutdown(std::net::Shutdown::Write)));
            note("accept still", listener.accept().map(|_| 0));
            note("listener shut", is_done(listener.shutdown(std::net::Shutdown::Both)));
            note("accept", listener.accept().map(|_| 0));
            settle();
            note("who was not accepted reads", clients[1].read(buffer));
            note("listener shut again", is_done(listener.shutdown(std::net::Shutdown::Both)));
            note("connect to what is shut", TcpStream::connect(at).map(|_| 0));
            said
        }
    };
}
compared!(linux, std::net, ::socket2, std::thread::sleep);
compared!(the_world, super, super::super::socket2, thread::sleep);

#[test]
fn each_call_comes_to_what_linux_says() {
    let real = linux();
    assert!(real.len() > 40);
    for_seeds(40, move || {
        let simulated = the_world();
        let differ: Vec<_> = real.iter().zip(&simulated).filter(|(one, other)| one != other).collect();
        if !differ.is_empty() || real.len() != simulated.len() {
            world::current().fail(format!("Linux, and the world: {differ:#?}"));
        }
    });
}

#[test]
fn a_port_is_refused_to_others_while_it_is_held_and_clients_while_nobody_listens() {
    for_seeds(10, || {
        let bind = |address: SocketAddr| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(address))?;
            Ok::<_, io::Error>(socket)
        };
        let held = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = held.local_addr().unwrap().as_socket().unwrap();
        held.set_reuse_address(false).unwrap();
        for _ in 0..2 {
            let anywhere = SocketAddr::from(([0, 0, 0, 0], at.port()));
            assert_eq!(kind(TcpListener::bind(at)), ErrorKind::AddrInUse);
            assert_eq!(kind(TcpListener::bind(anywhere)), ErrorKind::AddrInUse);
            assert_eq!(kind(TcpStream::connect(at)), ErrorKind::ConnectionRefused);
            held.set_reuse_address(true).unwrap();
            let socket = bind(at).unwrap();
            socket.listen(8).unwrap();
            held.set_reuse_address(false).unwrap();
            let listener = TcpListener::from(socket);
            let mut client = TcpStream::connect(at).unwrap();
            let server = listener.accept().unwrap().0;
            drop((listener, server));
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(kind(TcpListener::bind(SocketAddr::new(B, 9))), ErrorKind::AddrNotAvailable);
    });
}

#[test]
fn a_connect_to_a_host_that_is_cut_off_times_out_and_one_that_is_healed_in_time_goes_on() {
    for_seeds(30, || {
        let (_, at) = serve_on_b(|listener| while listener.accept().is_ok() {});
        network(|network| network.cut(A, B));
        let began = Instant::now();
        assert_eq!(kind(TcpStream::connect_timeout(&at, secs(5))), ErrorKind::TimedOut);
        assert!(began.elapsed() >= secs(5) && began.elapsed() < millis(5100));
        let began = Instant::now();
        assert_eq!(kind(TcpStream::connect(at)), ErrorKind::TimedOut);
        assert!(began.elapsed() >= secs(127) && began.elapsed() < secs(128));
        let healer = thread::spawn(|| {
            thread::sleep(millis(4500));
            network(|network| network.heal(A, B));
        });
        let began = Instant::now();
        TcpStream::connect_timeout(&at, secs(30)).unwrap();
        // The handshake is tried again after 1, 3 and 7 s.
        assert!(began.elapsed() >= secs(7) && began.elapsed() < millis(7100), "{:?}", began.elapsed());
        healer.join().unwrap();
        assert_eq!(kind(TcpStream::connect(SocketAddr::new(B, 8))), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_killed_process_resets_what_it_had_not_read_and_closes_the_rest_after_what_it_wrote() {
    for_seeds(40, || {
        for leaves_unread in [false, true] {
            let process = process_on(B);
            world::current().start_process(process, || {
                let listener = TcpListener::bind((B, 7)).unwrap();
                let (mut socket, _) = listener.accept().unwrap();
                socket.write_all(&[7; 50_000]).unwrap();
                let _accepts_no_more = listener.accept();
                let _never = socket.read(&mut [0]);
            });
            let mut client = loop {
                match TcpStream::connect((B, 7)) {
                    Ok(client) => break client,
                    Err(_) => thread::sleep(millis(1)),
                }
            };
            settle();
            if leaves_unread {
                client.write_all(b"unread").unwrap();
                settle();
            }
            world::current().kill(process);
            settle();
            assert_eq!(network(|network| network.open_sockets(process)), 0);
            let mut got = Vec::new();
            let end = client.read_to_end(&mut got);
            assert_eq!(got.len(), 50_000);
            assert_eq!(end.err().map(|error| error.kind()), leaves_unread.then_some(ErrorKind::ConnectionReset));
            assert_eq!(kind(TcpStream::connect((B, 7))), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn a_frozen_process_takes_connections_and_bytes_until_its_buffers_are_full() {
    for_seeds(20, || {
        let (process, at) = serve_on_b(|listener| {
            let (mut socket, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            socket.write_all(&(all.len() as u32).to_le_bytes()).unwrap();
        });
        world::current().freeze(process, true);
        let mut client = TcpStream::connect(at).unwrap();
        client.set_write_timeout(Some(secs(1))).unwrap();
        let taken = client.write(&vec![1; 1 << 20]).unwrap();
        assert!(taken > 64 << 10 && taken <= 128 << 10);
        world::current().freeze(process, false);
        client.set_write_timeout(None).unwrap();
        client.write_all(&vec![1; 1 << 20]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_le_bytes(answer), (1 << 20) + taken as u32);
    });
}

fn keep_alive(socket: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(secs(10)).with_interval(secs(5)).with_retries(4);
    SockRef::from(socket).set_tcp_keepalive(&keepalive).unwrap();
}

#[test]
fn keepalive_finds_a_peer_that_cannot_be_reached_and_not_one_that_can() {
    let losses: [Disturb; 4] = [
        || network(|network| network.cut(A, B)),
        || network(|network| network.set_link(B, A, |link| link.cut = true)),
        || network(|network| network.forget(A, B)),
        || network(|network| network.power_cut(B)),
    ];
    for lose in losses {
        for_seeds(15, move || {
            let (_, mut client) = to_idle_b();
            keep_alive(&client);
            client.set_read_timeout(Some(secs(1000))).unwrap();
            assert_eq!(kind(client.read(&mut [0])), ErrorKind::WouldBlock);
            client.set_read_timeout(None).unwrap();
            lose();
            let began = Instant::now();
            assert_eq!(kind(client.read(&mut [0])), ErrorKind::TimedOut);
            assert!(began.elapsed() >= secs(20) && began.elapsed() <= secs(31), "{:?}", began.elapsed());
        });
    }
}

#[test]
fn a_cut_that_is_shorter_than_keepalive_takes_is_not_noticed() {
    for_seeds(20, || {
        let (_, mut client) = to_idle_b();
        keep_alive(&client);
        for _ in 0..5 {
            network(|network| network.cut(A, B));
            thread::sleep(secs(15));
            network(|network| network.heal(A, B));
            thread::sleep(secs(6));
        }
        client.set_read_timeout(Some(secs(1000))).unwrap();
        assert_eq!(kind(client.read(&mut [0])), ErrorKind::WouldBlock);
    });
}

#[test]
fn what_is_not_acknowledged_ends_a_connection_after_the_user_timeout_or_else_the_long_one() {
    for_seeds(20, || {
        for (user_timeout, least) in [(Some(secs(30)), 30), (None, 900)] {
            let (process, mut client) = to_idle_b();
            keep_alive(&client);
            SockRef::from(&client).set_tcp_user_timeout(user_timeout).unwrap();
            network(|network| network.cut(A, B));
            client.write_all(b"into the void").unwrap();
            let began = Instant::now();
            assert_eq!(kind(client.read(&mut [0])), ErrorKind::TimedOut);
            assert!(began.elapsed() >= secs(least) - millis(1) && began.elapsed() < secs(least + 2));
            network(|network| network.heal(A, B));
            world::current().kill(process);
        }
    });
}

#[test]
fn the_user_timeout_also_ends_a_connection_whose_peer_never_reads() {
    for_seeds(20, || {
        let (_, client) = to_idle_b();
        SockRef::from(&client).set_tcp_user_timeout(Some(secs(30))).unwrap();
        let began = Instant::now();
        assert_eq!(kind((&client).write_all(&vec![0; 1 << 20])), ErrorKind::TimedOut);
        assert!(began.elapsed() >= secs(30) && began.elapsed() < secs(31));
    });
}

#[test]
fn after_a_power_cut_nothing_is_said_until_the_host_is_back_and_is_asked() {
    for_seeds(20, || {
        for writes in [true, false] {
            let (process, mut client) = to_idle_b();
            client.set_read_timeout(Some(secs(100))).unwrap();
            if !writes {
                keep_alive(&client);
            }
            network(|network| network.power_cut(B));
            assert!(!world::current().is_alive(process));
            if writes {
                client.write_all(b"anybody?").unwrap();
                assert_eq!(kind(client.read(&mut [0])), ErrorKind::WouldBlock);
            } else {
                thread::sleep(secs(5));
            }
            network(|network| network.power_on(B));
            assert_eq!(kind(client.read(&mut [0])), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_middlebox_resets_both_ends_and_others_stay() {
    for_seeds(20, || {
        let (_, at) = serve_on_b(|listener| {
            let (mut socket, _) = listener.accept().unwrap();
            assert_eq!(kind(socket.read(&mut [0])), ErrorKind::ConnectionReset);
            let (mut again, _) = listener.accept().unwrap();
            again.write_all(b"y").unwrap();
        });
        let (_listener, mut near, mut far) = pair();
        let mut client = TcpStream::connect(at).unwrap();
        settle();
        network(|network| network.reset(A, B));
        assert_eq!(kind(client.read(&mut [0])), ErrorKind::ConnectionReset);
        near.write_all(b"x").unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 1);
        let mut again = TcpStream::connect(at).unwrap();
        assert_eq!(again.read(&mut [0; 9]).unwrap(), 1);
    });
}

#[test]
fn descriptors_are_counted_and_a_limit_keeps_connections_waiting() {
    for_seeds(20, || {
        let listener = TcpListener::bind("0.0.0.0:9").unwrap();
        let client = TcpStream::connect("127.0.0.1:9").unwrap();
        assert_eq!(network(|network| network.open_sockets(DRIVER)), 2);
        network(|network| network.set_socket_limit(DRIVER, Some(2)));
        let refused = [client.try_clone().err(), listener.accept().err(), TcpStream::connect("127.0.0.1:9").err()];
        for error in refused {
            assert_eq!(error.unwrap().raw_os_error(), Some(Errno::MFILE.raw_os_error()));
        }
        network(|network| network.set_socket_limit(DRIVER, None));
        drop(listener.accept().unwrap());
        drop((client, listener));
        assert_eq!(network(|network| network.open_sockets(DRIVER)), 0);
    });
}

#[test]
fn calls_fail_when_the_world_says_so() {
    for_seeds(10, || {
        let (listener, mut client, _server) = pair();
        let fault = |call| world::Fault { call, errno: 12, probability: 1.0, left: 1 };
        let calls = ["socket", "accept4", "sendto", "recvfrom", "setsockopt", "bind", "listen"];
        world::current().set_faults(DRIVER, calls.map(fault).to_vec());
        let failed = [
            TcpStream::connect(listener.local_addr().unwrap()).err(),
            listener.accept().err(),
            client.write(b"x").err(),
            client.read(&mut [0]).err(),
            client.set_nodelay(true).err(),
            TcpListener::bind("127.0.0.1:0").err(),
            TcpListener::bind("127.0.0.1:0").err(),
        ];
        assert!(failed.iter().all(|error| error.as_ref().unwrap().raw_os_error() == Some(12)));
        client.write_all(b"x").unwrap();
    });
}

#[test]
fn names_are_those_the_driver_gave() {
    for_seeds(5, || {
        let name = Name { addresses: vec![B, A], takes: secs(3), no_server: false };
        network(|network| network.set_name("leader", name.clone()));
        network(|network| network.set_name("lost", Name { no_server: true, ..name }));
        let began = Instant::now();
        let found: Vec<_> = "leader:7".to_socket_addrs().unwrap().collect();
        assert_eq!(found, [SocketAddr::new(B, 7), SocketAddr::new(A, 7)]);
        assert!(began.elapsed() >= secs(3));
        assert!("lost:7".to_socket_addrs().unwrap_err().to_string().contains("Temporary failure"));
        assert!("nobody:7".to_socket_addrs().unwrap_err().to_string().contains("not known"));
        assert_eq!(kind("leader".to_socket_addrs()), ErrorKind::InvalidInput);
        assert_eq!("[::1]:5".to_socket_addrs().unwrap().next(), Some(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 5))));
    });
}

#[test]
fn who_waits_for_what_never_comes_is_in_a_deadlock() {
    let outcome = simulate(1, || {
        let (_listener, mut client, _server) = pair();
        keep_alive(&client);
        let _ = client.read(&mut [0]);
    });
    assert!(outcome.failure.is_some_and(|failure| failure.starts_with("deadlock: ") && failure.contains("Socket at")));
}

#[test]
fn the_same_seed_takes_the_same_steps() {
    let history = |seed| {
        let outcome = simulate(seed, || {
            network(|network| network.set_host(DRIVER, A));
            exchange(50_000);
        });
        assert_eq!(outcome.failure, None);
        (outcome.digest, outcome.steps, outcome.time)
    };
    let all: Vec<_> = (0..20).map(history).collect();
    assert!((0..20).all(|seed| history(seed) == all[seed as usize]));
    assert!((1..20).all(|at| all[at] != all[at - 1]));
}

/// So that nothing of it is left out when it is used from another module.
#[test]
fn sockets_are_shared_between_threads() {
    fn is<T: Send + Sync + std::fmt::Debug>() {}
    is::<TcpStream>();
    is::<TcpListener>();
    is::<Socket>();
    let _: fn(&World) -> &Network = World::network;
}
