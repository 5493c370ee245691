//! A follower whose disk is full: it says so and acknowledges nothing more, the leader goes on, and when there is room again the
//! follower goes on by itself.
#![allow(missing_docs)]

mod support;

use support::processes::Stage;
use support::volume::Volume;
use support::{TestLeader, assert_exact, assert_same, noise, wait_until};

fn fills_up_and_comes_back(options: &[&str]) {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    leader.append("log/1", &noise(1 << 20));
    leader.append("settings", b"a = 1");
    let volume = Volume::in_memory(&stage, 16);
    let mut follower = volume.follower("data", leader.address, options);
    leader.wait_in_sync(1);
    let id = leader.leader.followers()[0].id;

    let filler = volume.path("filler");
    volume.fill(&filler);
    let before = leader.leader.position();
    for n in 0..8 {
        leader.append("log/1", &noise(100_000 + n));
    }
    wait_until("the follower says why", || {
        let log = follower.log();
        log.contains("No space left on device") && log.contains("make some, and the follower goes on by itself")
    });
    let with_extension = options.is_empty();
    if with_extension {
        wait_until("the leader knows why", || {
            let evictions = leader.leader.evictions();
            evictions.iter().any(|eviction| {
                let said = eviction.reason.to_string();
                said.starts_with("it left (") && said.contains("/data/") && said.contains("No space left on device")
            })
        });
    }
    // What does not fit is never acknowledged, nor the leader held up.
    leader.append("log/2", b"while it was full");
    leader.replace("settings", b"a = 2");
    let acknowledged = |end| leader.status(id).is_some_and(|status| status.acknowledged >= Some(end));
    assert!(leader.leader.position() > before && !acknowledged(leader.leader.position()));

    std::fs::remove_file(filler).unwrap();
    leader.wait_in_sync(1);
    // It waits for room instead of comparing everything again and again.
    assert!(follower.log().matches("connected to the leader").count() <= 3, "{}", follower.log());
    let copy = volume.path("data");
    if with_extension {
        assert_exact(leader.dir.path(), &copy)
    } else {
        assert_same(leader.dir.path(), &copy)
    }
    assert!(!volume.path("data/.paceline/incomplete").exists());
    follower.stop();
    leader.shut_down();
}

#[test]
fn with_the_extension() {
    fills_up_and_comes_back(&[]);
}

#[test]
fn in_1_0_0_at_each_level() {
    for level in ["durable", "written", "received"] {
        fills_up_and_comes_back(&["--protocol", "1.0.0", "--durability", level]);
    }
}

#[test]
fn what_is_kept_goes_before_a_full_disk_stops_a_sync() {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    leader.append("log/1", &noise(9 << 20));
    let volume = Volume::in_memory(&stage, 16);
    std::fs::create_dir(volume.path("data")).unwrap();
    std::fs::write(volume.path("data/old"), noise(10 << 20)).unwrap();
    let mut follower = volume.follower("data", leader.address, &["--adopt", "--max-delete", "100%"]);
    leader.wait_in_sync(1);
    assert_same(leader.dir.path(), &volume.path("data"));
    assert!(follower.log().contains("dropped what was kept at"), "{}", follower.log());
    follower.stop();
    leader.shut_down();
}

#[test]
fn a_part_that_is_kept_when_the_disk_is_full_is_whole() {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    let (head, tail) = (noise(1 << 20), noise(7 << 20));
    leader.append("long", &head);
    let volume = Volume::in_memory(&stage, 16);
    let kept = volume.path("data/.paceline/kept");
    std::fs::create_dir_all(kept.join("2020-01-01T000000Z")).unwrap();
    std::fs::write(kept.join("2020-01-01T000000Z/old"), noise(6 << 20)).unwrap();
    std::fs::write(volume.path("data/long"), [head, tail.clone()].concat()).unwrap();
    let mut follower = volume.follower("data", leader.address, &["--adopt", "--keep", "9999d"]);
    leader.wait_in_sync(1);
    assert_exact(leader.dir.path(), &volume.path("data"));
    let times = std::fs::read_dir(kept).unwrap().map(|time| time.unwrap().path());
    let times: Vec<_> = times.filter(|time| time.is_dir()).collect();
    let [time] = &times[..] else { panic!("{times:?}") };
    assert!(std::fs::read(time.join("long.from-1048576")).unwrap() == tail, "half of it was kept");
    follower.stop();
    leader.shut_down();
}
