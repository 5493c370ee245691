use std::io::{ErrorKind, Read, Write};
use std::net::Ipv6Addr;
use std::time::Duration;

use socket2::SockRef;

use super::connection::proxy_header;
use super::mover::CONNECT_TIMEOUT;
use super::*;

/// How long anything may take before a test calls it a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn proxy_to(target: &TcpListener, change: impl FnOnce(&mut ProxyConfig)) -> Proxy {
    let mut config = ProxyConfig::new("127.0.0.1:0", target.local_addr().unwrap().port());
    change(&mut config);
    Proxy::bind(config).unwrap()
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn accept_one(target: &TcpListener) -> TcpStream {
    let (server, _) = target.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server
}

/// A client, and the server's side of its connection.
fn pair(proxy: &Proxy, target: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(proxy.address());
    (client, accept_one(target))
}

fn read(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Whether the connection was cut: its end came, as an end or as an error, and nothing before it.
fn is_cut(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: did not come");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn connections(proxy: &Proxy) -> usize {
    proxy.shared.state.lock().connections.len()
}

#[test]
fn an_end_of_one_direction_is_passed_on_and_the_other_goes_on() {
    let target = listener();
    let proxy = proxy_to(&target, |_| ());
    proxy.open("127.0.0.1").unwrap();
    for client_ends_first in [true, false] {
        let (client, server) = pair(&proxy, &target);
        let (mut first, mut second) = if client_ends_first { (&client, &server) } else { (&server, &client) };
        first.write_all(b"the request").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(second), b"the request");
        second.write_all(b"the answer").unwrap();
        assert_eq!(read(first, 10), b"the answer");
        second.write_all(b", and more").unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(first), b", and more");
    }
    wait_until("ended connections are off the list", || connections(&proxy) == 0);
}

#[test]
fn bytes_pass_unchanged_in_both_directions_at_once() {
    const BYTES: usize = 8 << 20;
    let noise = |seed| {
        let mut bytes = vec![0; BYTES];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    };
    let target = listener();
    let proxy = proxy_to(&target, |_| ());
    proxy.open("localhost").unwrap();
    let (client, server) = pair(&proxy, &target);
    std::thread::scope(|scope| {
        for (mut side, seed) in [(&client, 1), (&server, 2)] {
            scope.spawn(move || side.write_all(&noise(seed)).and_then(|()| side.shutdown(Shutdown::Write)).unwrap());
        }
        assert!(read_to_end(&server) == noise(1) && read_to_end(&client) == noise(2));
    });
}

#[test]
fn a_connection_that_breaks_on_one_side_breaks_on_the_other() {
    let target = listener();
    let proxy = proxy_to(&target, |_| ());
    proxy.open("127.0.0.1").unwrap();
    let (client, server) = pair(&proxy, &target);
    // With bytes unread and no lingering, the system resets the connection.
    (&client).write_all(b"unread").unwrap();
    assert_eq!(read(&server, 1), b"u");
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    assert!(is_cut(&client));
    wait_until("the connection is off the list", || connections(&proxy) == 0);
}

#[test]
fn clients_are_refused_until_it_is_opened_and_after_it_is_closed_and_all_connections_are_cut() {
    let target = listener();
    let proxy = proxy_to(&target, |_| ());
    let refused = || TcpStream::connect(proxy.address()).is_err();
    assert!(refused());
    for _ in 0..3 {
        proxy.open("127.0.0.1").unwrap();
        let pairs: Vec<_> = (0..5).map(|_| pair(&proxy, &target)).collect();
        // No news.
        proxy.open("127.0.0.1").unwrap();
        for (client, server) in &pairs {
            { client }.write_all(b"x").unwrap();
            assert_eq!(read(server, 1), b"x");
        }
        proxy.close();
        assert!(refused());
        assert!(pairs.iter().all(|(client, server)| is_cut(client) && is_cut(server)));
        wait_until("cut connections are off the list", || connections(&proxy) == 0);
    }
}

#[test]
fn another_leader_cuts_the_connections_to_the_one_before() {
    let target = listener();
    let proxy = proxy_to(&target, |_| ());
    proxy.open("127.0.0.1").unwrap();
    let (client, server) = pair(&proxy, &target);
    proxy.open("localhost").unwrap();
    assert!(is_cut(&client) && is_cut(&server));
    let (mut client, server) = pair(&proxy, &target);
    client.write_all(b"x").unwrap();
    assert_eq!(read(&server, 1), b"x");
}

#[test]
fn a_leader_that_does_not_answer_costs_a_client_its_connection_and_no_other_client_anything() {
    let nobody = listener();
    let proxy = proxy_to(&nobody, |_| ());
    proxy.open("127.0.0.1").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    assert!(is_cut(&connect(proxy.address())));
    let target = TcpListener::bind(address).unwrap();
    let (mut client, server) = pair(&proxy, &target);
    client.write_all(b"x").unwrap();
    assert_eq!(read(&server, 1), b"x");
}

#[test]
fn connections_beyond_the_bound_are_closed_until_one_ends() {
    let target = listener();
    let proxy = proxy_to(&target, |config| config.connections_max = 2);
    proxy.open("127.0.0.1").unwrap();
    let first = pair(&proxy, &target);
    let (mut client, server) = pair(&proxy, &target);
    assert!(is_cut(&connect(proxy.address())));
    client.write_all(b"x").unwrap();
    assert_eq!(read(&server, 1), b"x");
    drop(first);
    wait_until("there is room again", || connections(&proxy) == 1);
    pair(&proxy, &target);
}

#[test]
fn closing_ends_a_connecting_that_nobody_answers() {
    // Whose queue is full gets no answer: the system drops what would open a connection.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _waiting: Vec<_> = std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok())
        .take(100)
        .collect();
    let proxy = Proxy::bind(ProxyConfig::new("127.0.0.1:0", address.port())).unwrap();
    proxy.open("127.0.0.1").unwrap();
    let client = connect(proxy.address());
    wait_until("it connects", || proxy.shared.state.lock().connections.values().any(|at| at.server.is_some()));
    let closing = Instant::now();
    proxy.close();
    assert!(is_cut(&client));
    wait_until("the connecting has ended", || connections(&proxy) == 0);
    assert!(closing.elapsed() < CONNECT_TIMEOUT, "the connecting timed out");
}

#[test]
fn a_program_may_listen_on_the_port_of_a_proxy_that_is_closed() {
    let proxy = Proxy::bind(ProxyConfig::new("127.0.0.1:0", 1)).unwrap();
    assert!(!proxy.is_the_programs());
    let address = proxy.address();
    drop(proxy);
    let proxy = Proxy::bind(ProxyConfig::new(address.to_string(), address.port())).unwrap();
    assert!(proxy.is_the_programs());
    let program = TcpListener::bind(address).unwrap();
    TcpStream::connect(address).unwrap();
    program.accept().unwrap();
    assert!(proxy.open("127.0.0.2").is_err());
    drop(program);
    proxy.open("127.0.0.2").unwrap();
    let target = TcpListener::bind(("127.0.0.2", address.port())).unwrap();
    pair(&proxy, &target);
}

#[test]
fn a_port_in_use_is_an_error_that_names_the_flag() {
    let taken = listener();
    let error = Proxy::bind(ProxyConfig::new(taken.local_addr().unwrap().to_string(), 7)).err().unwrap().to_string();
    assert!(error.contains("--proxy") && error.contains("in use"), "{error}");
}

#[test]
fn the_program_is_told_the_clients_address_if_it_wants_it() {
    let target = listener();
    let proxy = proxy_to(&target, |config| config.proxy_protocol = true);
    proxy.open("127.0.0.1").unwrap();
    let (mut client, server) = pair(&proxy, &target);
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (from, to) = (client.local_addr().unwrap().port(), proxy.address().port());
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\nhello");
    assert_eq!(String::from_utf8(read_to_end(&server)).unwrap(), expected);
}

#[test]
fn the_proxy_header_tells_the_family_of_addresses() {
    let v4 = SocketAddr::from(([10, 0, 0, 1], 1000));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 2000));
    let mapped = SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0002], 3000));
    assert_eq!(proxy_header(v6, v6), "PROXY TCP6 ::1 ::1 2000 2000\r\n");
    assert_eq!(proxy_header(v4, mapped), "PROXY TCP4 10.0.0.1 10.0.0.2 1000 3000\r\n");
    assert_eq!(proxy_header(v4, v6), "PROXY UNKNOWN\r\n");
}

#[test]
fn settings_are_read_as_they_are_written() {
    for text in ["0.0.0.0:6379=6380", "[::1]:1=2,proxy-protocol", "localhost:0=7"] {
        assert_eq!(text.parse::<ProxyConfig>().unwrap().to_string(), text);
    }
    for bad in ["", "6379=6380", ":1=2", "a:1", "a:1=", "a:1=0", "a:x=1", "a:1=65536", "a:1=2,proxy", "a:1=2,"] {
        assert!(bad.parse::<ProxyConfig>().is_err(), "{bad} was taken");
    }
}

#[test]
fn a_side_that_reads_nothing_stops_the_other_and_no_other_client() {
    let target = listener();
    let proxy = proxy_to(&target, |_| ());
    proxy.open("127.0.0.1").unwrap();
    let (mut stuck, server) = pair(&proxy, &target);
    stuck.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0;
    // Buffers of the system, of both connections, and one of ours.
    while let Ok(count) = stuck.write(&[7; 64 << 10]) {
        sent += count;
        assert!(sent < 256 << 20, "nothing holds the client up");
    }
    let others: Vec<_> = (0..20).map(|_| pair(&proxy, &target)).collect();
    for (client, server) in &others {
        { client }.write_all(b"x").unwrap();
        assert_eq!(read(server, 1), b"x");
    }
    stuck.shutdown(Shutdown::Write).unwrap();
    let received = read_to_end(&server);
    assert!(received.len() >= sent && received.iter().all(|byte| *byte == 7));
}

#[test]
fn a_client_that_has_ended_and_is_owed_an_answer_costs_no_time() {
    let target = listener();
    let proxy = proxy_to(&target, |_| ());
    proxy.open("127.0.0.1").unwrap();
    let (client, mut server) = pair(&proxy, &target);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&server), b"");
    // Whatever is left to do, a mover that was told so again and again would be busy with it.
    let events = || proxy.shared.inboxes.iter().map(Inbox::rounds).sum::<u64>();
    let before = events();
    std::thread::park_timeout(Duration::from_millis(100));
    assert!(events() - before < 10, "the movers do not rest");
    server.write_all(b"the answer").unwrap();
    drop(server);
    assert_eq!(read_to_end(&client), b"the answer");
    wait_until("the connection is off the list", || connections(&proxy) == 0);
}
