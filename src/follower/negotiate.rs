//! Which protocol a leader speaks: asking, remembering, and introducing ourselves in the extension.
//!
//! A leader that answers in 1.0.0 (LavinMQ writes its own header, and closes) is connected to again at once, in 1.0.0. That is
//! remembered of its address for the next [`V1_CONNECTIONS`] connections, or until one of them ends that was in sync: a leader that
//! went may come back as another version.
//!
//! A follower that has spoken the extension, now or in an earlier run (it has a data set id: 1.0.0 has no word for one), remembers no such answer: it asks each time. So nobody
//! who answers once in the place of its leader, be it an old program on the wrong port, has it follow that leader in 1.0.0 later, where nothing says
//! whose data it is. [`Protocol::Extension`] does not follow in 1.0.0 at all.
//!
//! A lower version of the extension than ours is one that we do not speak any more: whoever answers it is spoken to in 1.0.0.
//!
//! One that closes without an answer has said nothing: it is starting, stopping, killed, or busy. Were that taken for 1.0.0, a
//! leader that dies in a handshake and comes back would be followed in 1.0.0 for as long as the connection lasts, and nothing would
//! ever be durable at this follower.

use std::io::{Read, Write};
use std::time::Duration;

use super::connection::{answered, lost, timed_out};
use crate::config::{FollowerConfig, Protocol};
use crate::error::Error;
use crate::protocol::ProtocolError;
use crate::protocol::extension::{Fields, Start, VERSION, field};
use crate::sys::net::{SocketAddr, TcpStream};
use crate::types::{DataSetId, NodeId};

/// Connections to an address that begin with 1.0.0 after it answered so; then the extension is asked for again.
const V1_CONNECTIONS: u32 = 9;

/// The bounds of a heartbeat's interval, whatever a leader says.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(600);

/// Between our own, to a leader that does not say how often.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

/// What leaders have spoken.
#[derive(Debug, Default)]
pub(super) struct Dialects {
    /// Which address spoke 1.0.0, and for how many connections more that is believed.
    v1: Option<(SocketAddr, u32)>,
    /// The extension was spoken, with whomever.
    extension: bool,
}

/// What a leader answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Extension,
    V1,
}

impl Dialects {
    /// `extension`: it was spoken in an earlier run.
    pub(super) fn new(extension: bool) -> Self {
        Self { v1: None, extension }
    }

    /// Whether to ask this leader for the extension.
    pub(super) fn ask(&mut self, protocol: Protocol, address: SocketAddr) -> bool {
        match (protocol, &mut self.v1) {
            (Protocol::V1, _) => false,
            (Protocol::Auto, Some((v1, left))) if *v1 == address && *left > 0 => {
                *left -= 1;
                false
            }
            (Protocol::Auto | Protocol::Extension, _) => true,
        }
    }

    /// Remembers an answer.
    pub(super) fn note(&mut self, address: SocketAddr, answer: Answer) {
        self.extension |= answer == Answer::Extension;
        self.v1 = (answer == Answer::V1 && !self.extension).then_some((address, V1_CONNECTIONS));
    }

    /// A connection in 1.0.0 has ended that was in sync.
    pub(super) fn ended(&mut self) {
        self.v1 = None;
    }
}

/// Asks for the extension. Each read and write blocks up to the connect timeout.
pub(super) fn negotiate(mut socket: &TcpStream, config: &FollowerConfig) -> Result<Answer, Error> {
    let timeout = Some(config.connect_timeout);
    let set = socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout));
    let asked = set.and_then(|()| socket.write_all(&Start::Extension(VERSION).header()));
    let answer = asked.map_err(ProtocolError::from).and_then(|()| Start::read(&mut socket));
    match answer {
        Ok(Start::V1) | Ok(Start::Extension(..VERSION)) => Ok(Answer::V1),
        Ok(Start::Extension(VERSION)) => Ok(Answer::Extension),
        Ok(Start::Extension(version)) => {
            let said = format!("the leader chose version {version} of the extension, and {VERSION} was offered");
            Err(ProtocolError::OutOfPlace(said).into())
        }
        Err(ProtocolError::StartHeader(header)) => Err(Error::NotALeader(format!("{header:02x?}"))),
        Err(ProtocolError::Io(error)) => Err(in_handshake(timed_out(error).into())),
        Err(error) => Err(error.into()),
    }
}

/// What the leader says of itself.
#[derive(Debug)]
pub(super) struct Introduction {
    pub(super) last_eviction: Option<String>,
    pub(super) admitted_in: Option<Duration>,
    pub(super) data_set: Option<DataSetId>,
    /// Of the election that it won; `None` outside a cluster.
    pub(super) term: Option<u64>,
    /// Between two heartbeats of ours.
    pub(super) interval: Duration,
    /// How long the leader may be silent: three intervals and 2 s. `None`: it did not say that it sends heartbeats.
    pub(super) silence: Option<Duration>,
}

/// Presents secret, id and data set to a leader of the extension, and hears about it. Each read and write blocks up to the connect
/// timeout.
pub(super) fn introduce(
    mut socket: &TcpStream,
    config: &FollowerConfig,
    id: NodeId,
    data_set: Option<DataSetId>,
) -> Result<Introduction, Error> {
    let secret = config.secret.as_bytes();
    let mut hello = vec![u8::try_from(secret.len()).expect("a Secret has at most 255 bytes")];
    hello.extend_from_slice(secret);
    socket.write_all(&hello).map_err(|error| in_handshake(error.into()))?;
    let mut answer = [0];
    socket.read_exact(&mut answer).map_err(|error| in_handshake(timed_out(error).into()))?;
    answered(socket, answer[0])?;
    let mut ours = Fields::default().with(field::ID, &id.get().to_le_bytes());
    if let Some(data_set) = data_set {
        ours = ours.with(field::DATA_SET, &data_set.to_bytes());
    }
    ours.write(&mut socket).map_err(|error| in_handshake(error.into()))?;
    let theirs = Fields::read(&mut socket).map_err(|error| match error {
        ProtocolError::Io(error) => in_handshake(timed_out(error).into()),
        broken => broken.into(),
    })?;
    let untimed = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
    untimed.map_err(|error| in_handshake(error.into()))?;
    if theirs.id()? == id {
        return Err(Error::SameId(id));
    }
    log::debug!("the leader's epoch is {:?}", theirs.u64(field::EPOCH));
    let millis = |tag| theirs.u32(tag).filter(|&ms| ms > 0).map(|ms| Duration::from_millis(ms.into()));
    let interval = millis(field::HEARTBEAT_MS).map(|interval| interval.clamp(INTERVAL_MIN, INTERVAL_MAX));
    Ok(Introduction {
        last_eviction: theirs.text(field::LAST_EVICTION).filter(|reason| !reason.is_empty()),
        admitted_in: millis(field::ADMITTED_IN_MS),
        data_set: theirs.data_set(),
        term: theirs.u64(field::TERM),
        interval: interval.unwrap_or(INTERVAL_DEFAULT),
        silence: interval.map(|interval| (interval * 3 + Duration::from_secs(2)).max(Duration::from_secs(3))),
    })
}

fn in_handshake(error: ProtocolError) -> Error {
    lost("in the handshake", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_of_1_0_0_is_asked_again_in_time_and_another_one_at_once() {
        let one: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let other: SocketAddr = "127.0.0.1:2".parse().unwrap();
        let mut dialects = Dialects::default();
        assert!(!dialects.ask(Protocol::V1, one) && dialects.ask(Protocol::Auto, one));
        dialects.note(one, Answer::V1);
        assert!(dialects.ask(Protocol::Auto, other));
        for _ in 0..V1_CONNECTIONS {
            assert!(!dialects.ask(Protocol::Auto, one));
        }
        assert!(dialects.ask(Protocol::Auto, one), "never asked again");
        dialects.note(one, Answer::V1);
        dialects.ended();
        assert!(dialects.ask(Protocol::Auto, one));
        dialects.note(one, Answer::V1);
        dialects.note(one, Answer::Extension);
        assert!(dialects.ask(Protocol::Auto, one));
    }

    #[test]
    fn who_has_spoken_the_extension_asks_each_time() {
        let (one, other) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let mut now = Dialects::default();
        now.note(other, Answer::Extension);
        for mut dialects in [now, Dialects::new(true)] {
            dialects.note(one, Answer::V1);
            assert!(dialects.ask(Protocol::Auto, one) && !dialects.ask(Protocol::V1, one));
        }
    }
}
