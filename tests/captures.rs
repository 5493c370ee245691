//! What real LavinMQ followers sent, recorded between two LavinMQ nodes: our leader understands it.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};

use paceline::leader::FollowerState;
use paceline::protocol::{self, ActionDecoder, ActionKind, Event};
use paceline::{NodeId, RelPath, Secret};
use support::fake_follower::FakeFollower;
use support::{TestLeader, path, wait_until};

const BULK: [&str; 7] = [
    "schema_version",
    "users.json",
    "42099b4af021e53fd8fd4e056c2568d7c2e3ffa8/definitions.amqp",
    "vhosts.json",
    "42099b4af021e53fd8fd4e056c2568d7c2e3ffa8/mqtt_retained_store/index",
    "42099b4af021e53fd8fd4e056c2568d7c2e3ffa8/51de2b835bd35a67eb32dbcd3d77d4b96e5aa39d/.queue",
    "42099b4af021e53fd8fd4e056c2568d7c2e3ffa8/51de2b835bd35a67eb32dbcd3d77d4b96e5aa39d/msgs.0000000001",
];

/// What the follower sent.
struct Capture {
    secret: Vec<u8>,
    id: NodeId,
    rounds: [Vec<RelPath>; 2],
    acks: Vec<u64>,
    /// The bytes of each of these stages.
    wire: [Vec<u8>; 4],
}

fn vector(name: &str) -> Vec<u8> {
    fs::read(format!("{}/tests/vectors/{name}.bin", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

impl Capture {
    fn read(version: &str) -> Self {
        let all = vector(&format!("lavinmq-{version}-follower"));
        let mut rest = &all[..];
        protocol::read_start_header(&mut rest).unwrap();
        let secret = protocol::read_secret(&mut rest).unwrap();
        let id = protocol::read_node_id(&mut rest).unwrap();
        let mut ends = vec![all.len() - rest.len()];
        let rounds = [(); 2].map(|()| {
            let names = std::iter::from_fn(|| protocol::read_name(&mut rest).unwrap()).collect();
            ends.push(all.len() - rest.len());
            names
        });
        let (acks, partial) = rest.as_chunks::<8>();
        assert!(partial.is_empty());
        let acks = acks.iter().map(|ack| i64::from_le_bytes(*ack).try_into().unwrap()).collect();
        let wire = [&all[..ends[0]], &all[ends[0]..ends[1]], &all[ends[1]..ends[2]], rest].map(<[u8]>::to_vec);
        Self { secret, id, rounds, acks, wire }
    }
}

/// The content of a round.
fn round(frame: &mut impl Read, requests: &[RelPath]) -> BTreeMap<RelPath, Vec<u8>> {
    while protocol::read_list_entry(frame).unwrap().is_some() {}
    let mut content = |path: &RelPath| {
        let size = protocol::read_file_size(frame).unwrap();
        let mut content = Vec::new();
        frame.take(size).read_to_end(&mut content).unwrap();
        (path.clone(), content)
    };
    requests.iter().map(&mut content).collect()
}

/// What the leader sent: the bulk, and the actions.
fn sent_by_leader(version: &str, capture: &Capture) -> (BTreeMap<RelPath, Vec<u8>>, Vec<Action>) {
    let all = vector(&format!("lavinmq-{version}-leader"));
    assert_eq!(all[0], protocol::ACCEPTED);
    let mut frame: protocol::FrameReader<&[u8]> = protocol::frame_reader(&all[1..]);
    let files = round(&mut frame, &capture.rounds[0]);
    round(&mut frame, &capture.rounds[1]);
    let mut stream = Vec::new();
    // It was cut off without an end.
    let _ = frame.read_to_end(&mut stream);
    let (mut decoder, mut input, mut actions) = (ActionDecoder::new(), &stream[..], Vec::<Action>::new());
    while let Some(event) = decoder.next(&mut input).unwrap() {
        match event {
            Event::Action { path, kind } => actions.push((path, kind, Vec::new())),
            Event::Payload { bytes, .. } => actions.last_mut().unwrap().2.extend_from_slice(bytes),
            Event::Heartbeat => {}
        }
    }
    assert!(decoder.is_between_actions());
    (files, actions)
}

type Action = (RelPath, ActionKind, Vec<u8>);

const VERSIONS: [(&str, usize); 2] = [("2.7.3", 312), ("2.9.1", 311)];

#[test]
fn requests_and_acknowledgements_are_read_as_they_were_meant() {
    for (version, actions_sent) in VERSIONS {
        let capture = Capture::read(version);
        assert_eq!(capture.secret.len(), 44);
        assert_eq!(capture.rounds[0], BULK.map(path));
        assert_eq!(capture.rounds[1], []);
        let (_, actions) = sent_by_leader(version, &capture);
        assert_eq!(actions.len(), actions_sent);
        let bytes = |(path, _, payload): &Action| protocol::framing_bytes(path) + payload.len() as u64;
        assert_eq!(capture.acks.iter().sum::<u64>(), actions.iter().map(bytes).sum::<u64>(), "all is acknowledged");
    }
}

#[test]
fn a_captured_follower_joins_our_leader_and_ends_in_sync() {
    for (version, _) in VERSIONS {
        let capture = Capture::read(version);
        let (files, actions) = sent_by_leader(version, &capture);
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in &files {
            let full = path.below(dir.path());
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, content).unwrap();
        }
        let leader = TestLeader::on(dir, |config| config.secret = Secret::new(&capture.secret).unwrap());
        let mut peer = FakeFollower::connect(leader.address);

        // LavinMQ waits for the answer before it tells its id, which makes no difference to a leader.
        peer.socket.write_all(&capture.wire[0]).unwrap();
        let mut answer = [9];
        peer.socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [protocol::ACCEPTED]);
        for (requests, wire) in capture.rounds.iter().zip(&capture.wire[1..]) {
            assert_eq!(peer.list().len(), BULK.len());
            peer.socket.write_all(wire).unwrap();
            for request in requests {
                assert_eq!(peer.content(), files[request]);
            }
        }
        peer.pass_probe();
        leader.wait_state(capture.id, FollowerState::InSync);

        let mut sent = 0;
        for (path, kind, payload) in &actions {
            match kind {
                ActionKind::Append(_) => leader.append(path.as_str(), payload),
                ActionKind::Replace(_) => leader.replace(path.as_str(), payload),
                ActionKind::Delete if leader.leader.file_len(path).is_some() => leader.delete(path.as_str()),
                ActionKind::Delete => continue,
            }
            sent += protocol::framing_bytes(path) + payload.len() as u64;
        }
        // Positions count as the extension does: with empty files, which this follower is told nothing of.
        let end = leader.leader.position();
        let mut stream = vec![0; usize::try_from(sent).unwrap()];
        peer.frame.read_exact(&mut stream).unwrap();
        // The acknowledgements as they came, but for deletes of files our leader did not know.
        let acknowledged: u64 = capture.acks.iter().sum();
        let (all_but_last, last) = capture.wire[3].split_at(capture.wire[3].len() - 8);
        peer.socket.write_all(all_but_last).unwrap();
        let last = u64::from_le_bytes(last.try_into().unwrap()) - (acknowledged - sent);
        peer.ack(last);
        wait_until("all is acknowledged", || leader.leader.followers().iter().any(|f| f.acknowledged >= Some(end)));
        assert!(leader.leader.evictions().is_empty());
    }
}
