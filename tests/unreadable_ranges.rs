//! Files that cannot be read to the end by the time they are sent: nobody gets anything in their place, and nothing is added to what a
//! follower has of them until all of it comes.
#![allow(missing_docs)]

mod support;

use std::fs::File;
use std::io::Read;

use paceline::leader::{EvictionReason, FollowerState};
use paceline::protocol::{ActionDecoder, ActionKind, Event};
use paceline::{LeaderConfig, NodeId, RelPath};
use support::fake_follower::FakeFollower;
use support::{PATIENCE, TestLeader, noise, path};

/// More than the buffers of a connection hold on any host.
const LONG: usize = 32 << 20;
const CUT_TO: usize = 1000;

fn patient(config: &mut LeaderConfig) {
    config.write_timeout = PATIENCE;
    config.ack_timeout = PATIENCE;
}

/// The stream of a 1.0.0 follower, read action by action and not acknowledged.
struct Stream {
    follower: FakeFollower,
    decoder: ActionDecoder,
    buffer: Vec<u8>,
}

/// An action, and as much of its content as came.
type Action = (RelPath, ActionKind, Vec<u8>);

impl Stream {
    fn join(leader: &TestLeader) -> Self {
        let follower = leader.narrow_fake().join();
        leader.wait_state(follower.id(), FollowerState::InSync);
        Self { follower, decoder: ActionDecoder::new(), buffer: Vec::new() }
    }

    fn id(&self) -> NodeId {
        self.follower.id()
    }

    /// The beginning of the next action; `None` at the end of the connection.
    fn begin(&mut self) -> Option<(RelPath, ActionKind)> {
        loop {
            match self.event()? {
                Heard::Begins(path, kind) => return Some((path, kind)),
                Heard::Content(_) => panic!("the content was not read"),
                Heard::Nothing => {}
            }
        }
    }

    /// The rest of the action; shorter than it should be if the connection ends.
    fn content(&mut self, (path, kind): (RelPath, ActionKind)) -> Action {
        let mut content = Vec::new();
        while (content.len() as u64) < kind.payload_bytes()
            && let Some(Heard::Content(bytes)) = self.event()
        {
            content.extend_from_slice(&bytes);
        }
        (path, kind, content)
    }

    fn next(&mut self) -> Option<Action> {
        let begun = self.begin()?;
        Some(self.content(begun))
    }

    fn event(&mut self) -> Option<Heard> {
        loop {
            let mut input = &self.buffer[..];
            let before = input.len();
            let event = match self.decoder.next(&mut input).unwrap() {
                None => None,
                Some(Event::Action { path, kind }) => Some(Heard::Begins(path, kind)),
                Some(Event::Payload { bytes, .. }) => Some(Heard::Content(bytes.to_vec())),
                Some(Event::Heartbeat) => Some(Heard::Nothing),
            };
            let used = before - input.len();
            self.buffer.drain(..used);
            if event.is_some() {
                return event;
            }
            let mut more = [0; 65536];
            match self.follower.frame.read(&mut more) {
                Ok(length) if length > 0 => self.buffer.extend_from_slice(&more[..length]),
                _ => return None,
            }
        }
    }
}

enum Heard {
    Begins(RelPath, ActionKind),
    Content(Vec<u8>),
    Nothing,
}

fn cut(leader: &TestLeader, name: &str) {
    let file = File::options().write(true).open(leader.dir.path().join(name)).unwrap();
    file.set_len(CUT_TO as u64).unwrap();
}

#[test]
fn who_cannot_be_told_that_a_replacement_is_given_up_is_let_go_in_its_middle() {
    let leader = TestLeader::with(patient);
    let mut stream = Stream::join(&leader);
    let content = noise(LONG);
    leader.replace("a", &content);
    let begun = stream.begin().unwrap();
    assert_eq!(begun, (path("a"), ActionKind::Replace(LONG as u64)));
    // It is being read: what does not fit the connection was not yet.
    cut(&leader, "a");
    let (_, _, got) = stream.content(begun);
    assert!(got.len() < LONG && content.starts_with(&got), "{} bytes that the file never had", got.len());
    leader.wait_evicted_for(stream.id(), &EvictionReason::Unreadable(path("a")));
    assert!(leader.follower().id().get() > 0);
}

#[test]
fn an_append_ends_where_it_could_be_read_no_further_and_nothing_is_added_before_all_of_it_comes() {
    let leader = TestLeader::with(patient);
    let mut stream = Stream::join(&leader);
    let content = noise(LONG);
    leader.append("a", &content);
    let begun = stream.begin().unwrap();
    leader.leader.append(&path("a"), LONG as u64, b"has no place there").unwrap();
    leader.append("b", b"of another");
    cut(&leader, "a");
    let (_, _, mut got) = stream.content(begun);
    let mut others = Vec::new();
    let replaced = loop {
        match stream.next().expect("the connection goes on") {
            (name, ActionKind::Append(_), bytes) if name == path("a") => got.extend_from_slice(&bytes),
            (name, kind @ ActionKind::Replace(_), bytes) if name == path("a") => break (kind, bytes),
            (name, _, bytes) => others.push((name, bytes)),
        }
    };
    assert!(got.len() < LONG && content.starts_with(&got), "{} bytes that the file never had", got.len());
    assert_eq!(others, [(path("b"), b"of another".to_vec())]);
    // As it is on disk by now.
    assert_eq!(replaced, (ActionKind::Replace(CUT_TO as u64), content[..CUT_TO].to_vec()));
    // From here on it is whole.
    leader.leader.append(&path("a"), CUT_TO as u64, b"more").unwrap();
    assert_eq!(stream.next(), Some((path("a"), ActionKind::Append(4), b"more".to_vec())));
}
