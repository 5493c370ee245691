//! A follower made by hand, that can misbehave at any step.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use paceline::protocol::{self, FrameReader, ListEntry};
use paceline::{NodeId, RelPath, Secret};

use super::{PATIENCE, secret};

pub struct FakeFollower {
    /// The last it told.
    pub id: Option<NodeId>,
    pub socket: TcpStream,
    /// Decodes what the leader says after the handshake.
    pub frame: FrameReader<TcpStream>,
}

impl FakeFollower {
    /// Connects and does nothing else. Reads give up after [`PATIENCE`], so that a test fails rather than hangs.
    pub fn connect(leader: SocketAddr) -> Self {
        Self::on(TcpStream::connect(leader).unwrap())
    }

    /// Connects with a small receive buffer, so that a few hundred KiB make the leader's writes block.
    pub fn connect_narrow(leader: SocketAddr) -> Self {
        Self::connect_with(leader, 4096)
    }

    /// Connects with a receive buffer of this size.
    pub fn connect_with(leader: SocketAddr, receive_bytes: usize) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(receive_bytes).unwrap();
        socket.connect(&leader.into()).unwrap();
        Self::on(socket.into())
    }

    fn on(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let frame = protocol::frame_reader(socket.try_clone().unwrap());
        Self { id: None, socket, frame }
    }

    /// The id it told.
    pub fn id(&self) -> NodeId {
        self.id.expect("it told an id")
    }

    pub fn hello(&mut self, secret: &Secret) -> u8 {
        protocol::write_hello(&mut self.socket, secret).unwrap();
        let mut answer = [0];
        self.socket.read_exact(&mut answer).unwrap();
        answer[0]
    }

    pub fn shake(mut self, id: NodeId) -> Self {
        assert_eq!(self.hello(&secret()), protocol::ACCEPTED);
        protocol::write_node_id(&mut self.socket, id).unwrap();
        self.id = Some(id);
        self
    }

    pub fn list(&mut self) -> Vec<ListEntry> {
        std::iter::from_fn(|| protocol::read_list_entry(&mut self.frame).unwrap()).collect()
    }

    pub fn request<'a>(&mut self, names: impl IntoIterator<Item = &'a RelPath>) {
        let mut wire = Vec::new();
        for name in names {
            protocol::write_name(&mut wire, name).unwrap();
        }
        protocol::write_end(&mut wire).unwrap();
        self.socket.write_all(&wire).unwrap();
    }

    pub fn content(&mut self) -> Vec<u8> {
        let size = protocol::read_file_size(&mut self.frame).unwrap();
        let mut content = Vec::new();
        (&mut self.frame).take(size).read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, size);
        content
    }

    /// Both rounds, asking for nothing, and the acknowledgement of the probe: attached, with an empty directory.
    pub fn join(mut self) -> Self {
        for _ in 0..2 {
            self.list();
            self.request([]);
        }
        self.pass_probe();
        self
    }

    pub fn ack(&mut self, bytes: u64) {
        self.socket.write_all(&i64::try_from(bytes).unwrap().to_le_bytes()).unwrap();
    }

    /// Two rounds in which it asks for everything; what it got, by name.
    pub fn sync(&mut self) -> BTreeMap<RelPath, Vec<u8>> {
        let names: Vec<_> = self.list().into_iter().map(|entry| entry.path).collect();
        self.request(&names);
        let files = names.iter().map(|name| (name.clone(), self.content())).collect();
        self.list();
        self.request([]);
        files
    }

    /// Reads and acknowledges the probe.
    pub fn pass_probe(&mut self) {
        let mut probe = vec![0; 4 + protocol::PROBE_NAME.len() + 8];
        self.frame.read_exact(&mut probe).unwrap();
        self.ack(probe.len() as u64);
    }

    /// Reads and acknowledges everything until the leader closes.
    pub fn drain(mut self) -> io::Result<u64> {
        let mut buffer = [0; 65536];
        let mut total = 0;
        loop {
            let length = self.frame.read(&mut buffer)?;
            if length == 0 {
                return Ok(total);
            }
            total += length as u64;
            self.ack(length as u64);
        }
    }

    /// Waits until the leader has closed the connection, without reading the frame.
    pub fn wait_closed(&self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut buffer = [0; 65536];
        super::wait_until("the leader closes the connection", || match (&self.socket).read(&mut buffer) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        });
    }
}
