//! Power losses of a real ext4 on a loop device, and writes to it that really fail in the background.
//!
//! They need root and loop devices: `.ci/test` runs them where there are any.
#![allow(missing_docs)]

mod support;

use std::fs;

use fastrand::Rng;
use paceline::leader::{CommitOutcome, FollowerStatus, Unknown};
use paceline::{Error, Leader, LeaderConfig, StreamPosition};
use support::processes::Stage;
use support::volume::Volume;
use support::{TestFollower, TestLeader, assert_exact, assert_same, noise_of, wait_until};

const LOGS: [&str; 3] = ["log/0", "log/1", "deep/er/log"];

/// What a leader's files were at a position.
struct Moment {
    at: StreamPosition,
    lengths: [usize; LOGS.len()],
    /// What the file says that is replaced again and again.
    state: usize,
    /// Files made, of which the last is kept.
    made: usize,
}

/// A leader that writes, and what it wrote.
struct Writer {
    leader: TestLeader,
    random: Rng,
    logs: [Vec<u8>; LOGS.len()],
    count: usize,
    moments: Vec<Moment>,
}

impl Writer {
    fn new() -> Self {
        let leader = TestLeader::with(|config| config.ack_timeout = support::PATIENCE);
        Self { leader, random: Rng::with_seed(7), logs: Default::default(), count: 0, moments: Vec::new() }
    }

    fn write(&mut self) {
        let log = self.random.usize(..LOGS.len());
        let length = self.random.usize(1..20_000);
        let bytes = noise_of(&mut self.random, length);
        self.leader.append(LOGS[log], &bytes);
        self.logs[log].extend_from_slice(&bytes);
        self.count += 1;
        self.leader.replace("state", &state(self.count));
        self.leader.append(&format!("made/{}", self.count), b"made");
        if self.count > 1 {
            self.leader.delete(&format!("made/{}", self.count - 1));
        }
        self.moments.push(Moment {
            at: self.leader.leader.position(),
            lengths: std::array::from_fn(|log| self.logs[log].len()),
            state: self.count,
            made: self.count,
        });
    }

    /// Looks whether a copy has all up to a position.
    #[track_caller]
    fn assert_has(&self, copy: &std::path::Path, position: StreamPosition) {
        let Some(moment) = self.moments.iter().rfind(|moment| moment.at <= position) else { return };
        for (log, name) in LOGS.iter().enumerate() {
            let found = fs::read(copy.join(name)).unwrap_or_default();
            assert!(found.len() >= moment.lengths[log], "{name}: {} of {} bytes", found.len(), moment.lengths[log]);
            let sure = moment.lengths[log];
            assert!(found[..sure] == self.logs[log][..sure], "{name} is another below {sure}");
        }
        let found = fs::read(copy.join("state")).unwrap();
        assert!((moment.state..=self.count).any(|count| found == state(count)), "state is of {} bytes", found.len());
        let made: Vec<usize> = fs::read_dir(copy.join("made"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        assert!(made.iter().all(|made| *made >= moment.made), "{made:?} after {}", moment.made);
    }

    fn follower(&self) -> Option<FollowerStatus> {
        self.leader.leader.followers().pop()
    }
}

fn state(count: usize) -> Vec<u8> {
    format!("{count} ").repeat(3000).into_bytes()
}

/// What each power loss leaves has all that the follower had said to be durable.
fn loses_power(options: &[&str], durable: impl Fn(&Writer) -> Option<StreamPosition>) {
    let (stage, mut writer) = (Stage::new(), Writer::new());
    let volume = Volume::ext4(&stage, 90);
    for round in 0..4 {
        let mut follower = volume.follower("data", writer.leader.address, options);
        writer.leader.wait_in_sync(1);
        let began = writer.leader.leader.position();
        let mut said = None;
        let enough = 40 + 17 * round;
        for _ in 0..10_000 {
            writer.write();
            said = durable(&writer).filter(|said| *said > began);
            let since = writer.moments.iter().rev().take_while(|moment| Some(moment.at) > said).count();
            if said.is_some() && since > 0 && writer.moments.iter().filter(|moment| moment.at > began).count() > enough
            {
                break;
            }
        }
        volume.lose_power(&mut follower);
        let said = said.expect("nothing was said to be durable");
        writer.assert_has(&volume.path("data"), said);
        wait_until("gone", || writer.leader.leader.followers().is_empty());
    }
    let mut follower = volume.follower("data", writer.leader.address, options);
    writer.leader.wait_in_sync(1);
    assert_same(writer.leader.dir.path(), &volume.path("data"));
    follower.stop();
    writer.leader.shut_down();
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_was_acknowledged_as_durable_in_1_0_0_outlives_a_power_loss() {
    loses_power(&["--protocol", "1.0.0"], |writer| writer.follower()?.acknowledged);
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_was_made_durable_when_asked_outlives_a_power_loss() {
    loses_power(&[], |writer| {
        if writer.count % 5 == 0 {
            writer.leader.leader.request_durable().unwrap();
        }
        writer.follower()?.durable
    });
}

/// The disk cannot take what the follower wrote; then it can again. What is acknowledged after that is on it.
fn fails_in_the_background(options: &[&str], restarted: bool) {
    let (stage, leader) = (Stage::new(), TestLeader::with(|config| config.ack_timeout = support::PATIENCE));
    let volume = Volume::ext4(&stage, 80);
    let mut random = Rng::with_seed(1);
    leader.append("a", b"old");
    leader.append("b", b"old");
    let mut follower = volume.follower("data", leader.address, options);
    leader.wait_in_sync(1);
    // This keeps the follower's own folder. Blocks for new folders could not be written either, and an ext4 that cannot write
    // those becomes read-only.
    fs::create_dir_all(volume.path("data/.paceline/kept")).unwrap();
    volume.run("sync");
    let filler = volume.beside("filler");
    volume.fill(&filler);
    leader.append("a", &noise_of(&mut random, 2_000_000));
    let end = leader.leader.request_durable().unwrap();
    wait_until("the flush fails", || follower.log().contains("flush /"));
    assert!(volume.path("data/.paceline/suspect").exists());
    let said = |status: &FollowerStatus| {
        status.durable >= Some(end) || !options.is_empty() && status.acknowledged >= Some(end)
    };
    assert!(!leader.leader.followers().iter().any(said));
    if restarted {
        follower.kill();
    }
    fs::remove_file(filler).unwrap();
    if restarted {
        follower = volume.follower("data", leader.address, options);
    }
    leader.wait_in_sync(1);
    leader.append("b", b"new");
    let end = leader.leader.request_durable().unwrap();
    leader.wait_in_sync(1);
    if options.is_empty() {
        wait_until("durable", || leader.leader.followers()[0].durable >= Some(end));
    }
    volume.lose_power(&mut follower);
    assert_exact(leader.dir.path(), &volume.path("data"));
    assert!(!volume.path("data/.paceline/incomplete").exists());
    leader.shut_down();
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_the_disk_of_a_leader_lost_is_served_by_no_leader_after_it_and_mended_by_following() {
    support::begin();
    let stage = Stage::new();
    let volume = Volume::ext4(&stage, 80);
    // As above.
    fs::create_dir_all(volume.path(".paceline/kept")).unwrap();
    let lead = || Leader::open(LeaderConfig::new(volume.path(""), support::secret()));
    let leader = lead().unwrap();
    let address = leader.listen("127.0.0.1:0").unwrap();
    let spare = TestFollower::on(address, tempfile::tempdir().unwrap());
    wait_until("in sync", || leader.in_sync().followers == [spare.id()]);
    let append = |bytes: &[u8]| leader.file(&support::path("a")).unwrap().append(bytes).unwrap();
    assert!(leader.commit(append(b"old"), support::PATIENCE).is_committed());
    volume.run("sync");
    let filler = volume.beside("filler");
    volume.fill(&filler);
    let end = append(&support::noise(2_000_000));
    let outcome = leader.commit(end, support::PATIENCE);
    assert_eq!(outcome, CommitOutcome::Unknown(Unknown::LocalSyncFailed));
    wait_until("the follower has it", || leader.followers()[0].acknowledged >= Some(end));
    leader.shutdown(support::PATIENCE);
    drop(leader);
    fs::remove_file(filler).unwrap();
    // All of it can be read, and each sync would succeed.
    assert_eq!(fs::metadata(volume.path("a")).unwrap().len(), 2_000_003);
    volume.run("sync");
    let refused = lead().err().unwrap();
    assert!(matches!(refused, Error::Suspect(_)), "{refused}");
    let leader = TestLeader::on(spare.stop(), |_| ());
    let mut follower = volume.follower("", leader.address, &[]);
    leader.wait_in_sync(1);
    leader.append("b", b"new");
    let end = leader.leader.request_durable().unwrap();
    wait_until("durable", || leader.leader.followers()[0].durable >= Some(end));
    volume.lose_power(&mut follower);
    assert_exact(leader.dir.path(), &volume.path(""));
    assert!(!volume.path(".paceline/suspect").exists() && !volume.path(".paceline/incomplete").exists());
    leader.shut_down();
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_failed_in_the_background_is_on_disk_before_it_is_acknowledged() {
    for options in [&[][..], &["--protocol", "1.0.0"]] {
        for restarted in [false, true] {
            fails_in_the_background(options, restarted);
        }
    }
}
