//! Debian's etcd, of one member or several, on loopback and in a temporary directory.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use paceline::coordinator::{EtcdConfig, EtcdCoordinator, EtcdEndpoint};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::processes::{Process, Stage, find};
use super::{PATIENCE, wait_until};

pub struct Etcd {
    members: Vec<Member>,
    options: Vec<String>,
    scheme: &'static str,
    host: Ipv4Addr,
    /// Last, so that it goes last: the members' logs are in it.
    pub stage: Stage,
}

struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<Process>,
}

impl Etcd {
    /// One member.
    pub fn start() -> Self {
        Self::start_on(Stage::new(), 1, "http", &[])
    }

    pub fn start_members(members: usize) -> Self {
        Self::start_on(Stage::new(), members, "http", &[])
    }

    /// One member, which is reached at this address.
    pub fn start_at(host: Ipv4Addr) -> Self {
        Self::launched(Self::new(Stage::new(), host, "http", &[]), 1)
    }

    /// Several members, in this stage, all at one address.
    pub fn start_members_at(stage: Stage, host: Ipv4Addr, members: usize) -> Self {
        Self::launched(Self::new(stage, host, "http", &[]), members)
    }

    /// With more options; `scheme` is the clients'.
    pub fn start_on(stage: Stage, members: usize, scheme: &'static str, options: &[&str]) -> Self {
        Self::launched(Self::new(stage, Ipv4Addr::LOCALHOST, scheme, options), members)
    }

    fn new(stage: Stage, host: Ipv4Addr, scheme: &'static str, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { stage, members: Vec::new(), options, scheme, host }
    }

    fn launched(mut etcd: Self, members: usize) -> Self {
        // Between our looking for free ports and etcd's taking them, someone else may.
        for attempt in 0.. {
            assert!(attempt < 10, "no ports for etcd");
            etcd.choose_ports(members, attempt);
            if (0..members).all(|member| etcd.launch(member)) && etcd.all_serve() {
                return etcd;
            }
        }
        unreachable!()
    }

    fn choose_ports(&mut self, members: usize, attempt: u32) {
        let listeners: Vec<_> = (0..2 * members).map(|_| TcpListener::bind((self.host, 0)).unwrap()).collect();
        let ports: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let member = |(index, ports): (usize, &[u16])| Member {
            name: format!("etcd{index}-{attempt}"),
            client_port: ports[0],
            peer_port: ports[1],
            process: None,
        };
        self.members = ports.chunks(2).enumerate().map(member).collect();
    }

    /// Starts a member; `false` if its port was taken.
    fn launch(&mut self, member: usize) -> bool {
        let peers: Vec<_> =
            self.members.iter().map(|it| format!("{}=http://{}:{}", it.name, self.host, it.peer_port)).collect();
        let it = &self.members[member];
        let peer = format!("http://{}:{}", self.host, it.peer_port);
        let client = self.url(member);
        let dir = self.stage.path(&it.name);
        let settings = [
            ("--name", it.name.as_str()),
            ("--data-dir", dir.to_str().unwrap()),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &peers.join(",")),
            // Quicker than the defaults, and the shortest lease is one of 1 s.
            ("--heartbeat-interval", "50"),
            ("--election-timeout", "500"),
            ("--logger", "zap"),
        ];
        let args = settings.iter().flat_map(|(name, value)| [*name, *value]).chain(["--unsafe-no-fsync"]);
        let args = args.chain(self.options.iter().map(String::as_str));
        let logged = std::fs::read_to_string(self.stage.path(&format!("{}.log", it.name))).unwrap_or_default().len();
        let mut process = self.stage.start(&it.name, find("etcd", "etcd-server"), args);
        let host = self.host;
        wait_until("etcd listens", || process.has_ended() || TcpStream::connect((host, it.client_port)).is_ok());
        if process.has_ended() {
            assert!(process.log()[logged..].contains("address already in use"), "etcd ended: {}", process.log());
            return false;
        }
        self.members[member].process = Some(process);
        true
    }

    /// Waits until every member answers; `false` if one of them ended.
    fn all_serve(&mut self) -> bool {
        let mut ended = false;
        wait_until("etcd serves", || {
            ended = self.members.iter_mut().any(|it| it.process.as_mut().unwrap().has_ended());
            ended || (0..self.members.len()).all(|member| self.serves(member))
        });
        !ended
    }

    /// Whether it answers what most of the members agree on.
    fn serves(&self, member: usize) -> bool {
        // Its certificate is its client's affair.
        self.scheme == "https" || self.try_call(member, "kv/range", &json!({"key": encode("x")})).is_some()
    }

    pub fn kill(&mut self, member: usize) {
        self.members[member].process.take().unwrap().kill();
    }

    /// Starts a member that was killed, on its data and at its port; waits until it answers.
    pub fn restart(&mut self, member: usize) {
        self.restart_closed(member);
        wait_until("etcd serves again", || self.serves(member));
    }

    /// The same, of one that does not let everyone in: it may not serve yet.
    pub fn restart_closed(&mut self, member: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !self.launch(member) {
            assert!(Instant::now() < deadline, "etcd does not get its port back");
        }
    }

    pub fn signal(&self, member: usize, signal: Signal) {
        self.members[member].process.as_ref().unwrap().signal(signal);
    }

    pub fn url(&self, member: usize) -> String {
        format!("{}://{}:{}", self.scheme, self.host, self.members[member].client_port)
    }

    /// All members, beginning with this one.
    pub fn config_from(&self, first: usize) -> EtcdConfig {
        let members = (0..self.members.len()).map(|index| (first + index) % self.members.len());
        EtcdConfig::new(members.map(|member| self.url(member).parse::<EtcdEndpoint>().unwrap()))
    }

    pub fn config(&self) -> EtcdConfig {
        self.config_from(0)
    }

    /// A handle with the default settings.
    pub fn coordinator(&self) -> EtcdCoordinator {
        EtcdCoordinator::new(&self.config()).unwrap()
    }

    /// A handle whose leases last as short as can be borne on a busy machine.
    pub fn brief(&self) -> EtcdCoordinator {
        EtcdCoordinator::new(&self.brief_config()).unwrap()
    }

    pub fn brief_config(&self) -> EtcdConfig {
        let mut config = self.config();
        config.lease_ttl = Duration::from_secs(3);
        config.answer_timeout = Duration::from_secs(1);
        config
    }

    /// Posts to the gateway of the first member; fails the test if the answer is an error.
    #[track_caller]
    pub fn call(&self, path: &str, body: &Value) -> Value {
        self.try_call(0, path, body).unwrap_or_else(|| panic!("etcd refused {path} {body}"))
    }

    fn try_call(&self, member: usize, path: &str, body: &Value) -> Option<Value> {
        let answer = self.post(member, path, body)?;
        (answer.get("error").is_none() && answer.get("code").is_none()).then_some(answer)
    }

    /// What the gateway answers, be it an error. Blocks until it does.
    fn post(&self, member: usize, path: &str, body: &Value) -> Option<Value> {
        let mut stream = TcpStream::connect((self.host, self.members[member].client_port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = body.to_string();
        // HTTP 1.0: no chunks, and the answer ends with the connection.
        write!(stream, "POST /v3/{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        self.call("kv/put", &json!({"key": encode(key), "value": encode(value)}));
    }

    /// The values of all keys that begin so.
    #[track_caller]
    pub fn get(&self, prefix: &str) -> Vec<(String, String)> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let answer = self.call("kv/range", &json!({"key": encode(prefix), "range_end": encode(end)}));
        let decode = |kv: &Value, field: &str| {
            String::from_utf8(STANDARD.decode(kv[field].as_str().unwrap_or_default()).unwrap()).unwrap()
        };
        let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
        kvs.iter().map(|kv| (decode(kv, "key"), decode(kv, "value"))).collect()
    }

    #[track_caller]
    pub fn delete(&self, key: &str) {
        assert_eq!(self.call("kv/deleterange", &json!({"key": encode(key)}))["deleted"], "1");
    }

    /// The revision of etcd's store.
    #[track_caller]
    pub fn revision(&self) -> String {
        self.call("kv/range", &json!({"key": encode("x")}))["header"]["revision"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn revoke(&self, lease: i32) {
        self.call("lease/revoke", &json!({"ID": lease.to_string()}));
    }

    /// How many leases there are.
    #[track_caller]
    pub fn leases(&self) -> usize {
        self.call("lease/leases", &json!({}))["leases"].as_array().map_or(0, Vec::len)
    }
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}
