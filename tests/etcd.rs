//! The coordinator against a real etcd: elections, fencing, losing a lease in all the ways there are, and etcd's own failures.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use paceline::coordinator::{
    Bid, Candidate, Coordinator, CoordinatorError, EtcdConfig, EtcdCoordinator, EtcdUser, InSyncSet, Leadership,
    Observation, Stop,
};
use paceline::{EpochPosition, NodeId, Secret, StreamPosition};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::etcd::{Etcd, encode};
use support::processes::{Stage, find, run};
use support::{PATIENCE, logs, wait_until};

fn id(id: i32) -> NodeId {
    NodeId::new(id).unwrap()
}

fn set(ids: &[i32]) -> InSyncSet {
    InSyncSet::new(ids.iter().map(|&node| id(node))).unwrap()
}

fn uri(node: i32) -> String {
    format!("tcp://node{node}:5679")
}

/// Campaigns until elected; on a busy machine etcd may answer too late, whereupon a node tries again.
fn elected(coordinator: &EtcdCoordinator, node: i32) -> Arc<dyn Leadership> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match coordinator.campaign(id(node), &uri(node), &Stop::new()) {
            Err(CoordinatorError::Unavailable(_)) if Instant::now() < deadline => (),
            ended => return ended.unwrap().unwrap(),
        }
    }
}

/// Campaigns in a thread of its own; returns when the node is a candidate.
fn candidate<'scope>(
    scope: &'scope Scope<'scope, '_>,
    etcd: &Etcd,
    coordinator: &'scope EtcdCoordinator,
    node: i32,
    stop: &Stop,
) -> ScopedJoinHandle<'scope, Option<Arc<dyn Leadership>>> {
    let stop = stop.clone();
    let campaign = scope.spawn(move || coordinator.campaign(id(node), &uri(node), &stop).unwrap());
    let key = format!("lavinmq/leader/{node:x}");
    wait_until("the node is a candidate", || !etcd.get(&key).is_empty());
    campaign
}

/// The states seen, until one is as wanted.
fn observe<T>(observation: &Observation<T>, mut wanted: impl FnMut(&T) -> bool) -> T {
    loop {
        let state = observation.receiver().recv_timeout(PATIENCE).expect("the state does not come");
        if wanted(&state) {
            return state;
        }
    }
}

#[test]
fn one_of_two_is_elected_and_the_other_at_once_when_the_first_resigns() {
    let etcd = Etcd::start();
    let (one, two) = (etcd.coordinator(), etcd.coordinator());
    let leader = two.observe_leader().unwrap();
    assert_eq!(observe(&leader, |_| true), None);
    let first = elected(&one, 1);
    let seen = observe(&leader, Option::is_some).unwrap();
    assert_eq!((seen.uri, seen.id), (uri(1), Some(id(1))));
    thread::scope(|scope| {
        let campaign = candidate(scope, &etcd, &two, 2, &Stop::new());
        assert!(first.is_held() && !campaign.is_finished());
        first.resign();
        assert!(!first.is_held() && first.wait_lost(PATIENCE));
        let second = campaign.join().unwrap().unwrap();
        assert!(second.is_held() && !second.wait_lost(Duration::ZERO));
        let next = observe(&leader, |state| state.as_ref().is_some_and(|leader| leader.id == Some(id(2)))).unwrap();
        assert!(next.term > seen.term);
        // Twice is once.
        first.resign();
        assert!(second.is_held());
        drop(second);
        assert_eq!(observe(&leader, Option::is_none), None);
    });
    assert_eq!(etcd.leases(), 0);
}

#[test]
fn what_candidates_have_is_seen_in_their_order_for_as_long_as_they_stand() {
    let etcd = Etcd::start();
    let position = |position: &str| Some(position.parse::<EpochPosition>().unwrap());
    let (first, second, silent) = (etcd.coordinator(), etcd.coordinator(), etcd.coordinator());
    let of_old = Bid { term: 0, position: position("7:900") };
    // Said before it stands.
    second.bid(id(2), &of_old).unwrap();
    let leader = elected(&first, 1);
    let seen = first.observe_candidates().unwrap();
    let stops = [Stop::new(), Stop::new()];
    std::thread::scope(|scope| {
        let other = candidate(scope, &etcd, &second, 2, &stops[0]);
        let last = candidate(scope, &etcd, &silent, 3, &stops[1]);
        let told = |candidates: Vec<Candidate>| {
            candidates.iter().map(|candidate| (candidate.id.unwrap().get(), candidate.bid)).collect::<Vec<_>>()
        };
        let all = first.candidates().unwrap();
        assert!(all.is_sorted_by_key(|candidate| candidate.term) && Some(all[0].term) == leader.term());
        assert_eq!(told(all), [(1, None), (2, Some(of_old)), (3, None)]);
        let bid = Bid { term: leader.term().unwrap(), position: position("7:901") };
        second.bid(id(2), &bid).unwrap();
        assert_eq!(told(first.candidates().unwrap()), [(1, None), (2, Some(bid)), (3, None)]);
        observe(&seen, |candidates| candidates.iter().any(|candidate| candidate.bid == Some(bid)));
        // Nobody says anything beside somebody else's candidacy.
        silent.bid(id(2), &of_old).unwrap();
        etcd.put("lavinmq/paceline/positions/3", "what a later version says");
        assert_eq!(told(first.candidates().unwrap()), [(1, None), (2, Some(bid)), (3, None)]);
        stops.iter().for_each(Stop::set);
        assert!(other.join().unwrap().is_none() && last.join().unwrap().is_none());
        observe(&seen, |candidates| candidates.iter().all(|candidate| candidate.bid.is_none()));
        assert_eq!(told(first.candidates().unwrap()), [(1, None)]);
    });
    wait_until("its key goes with its lease", || etcd.get("lavinmq/paceline/positions/2").is_empty());
}

#[test]
fn a_leader_of_the_past_records_nothing() {
    let etcd = Etcd::start();
    let mut config = etcd.config();
    config.lease_ttl = Duration::from_secs(600);
    let (one, two) = (EtcdCoordinator::new(&config).unwrap(), etcd.coordinator());
    let in_sync = two.observe_in_sync_set().unwrap();
    assert_eq!(observe(&in_sync, |_| true), None);
    let first = elected(&one, 1);
    first.record_in_sync(&set(&[1, 35, 36])).unwrap();
    assert_eq!(etcd.get("lavinmq/isr"), [("lavinmq/isr".to_owned(), "1,z,10".to_owned())]);
    assert_eq!(observe(&in_sync, Option::is_some), Some(set(&[1, 35, 36])));
    thread::scope(|scope| {
        let campaign = candidate(scope, &etcd, &two, 2, &Stop::new());
        // The first does not notice until its next renewal, in minutes; the second believes that it has handed over.
        etcd.revoke(1);
        let term = etcd.get("lavinmq/paceline/term").remove(0).1;
        etcd.put("lavinmq/paceline/term", &term.replace("leads", "over"));
        let second = campaign.join().unwrap().unwrap();
        // Nothing was recorded since the first one did, and it believes that it leads.
        assert!(first.is_held());
        assert!(matches!(first.record_in_sync(&set(&[1])), Err(CoordinatorError::Lost)));
        assert!(!first.is_held());
        assert_eq!(one.in_sync_set().unwrap(), Some(set(&[1, 35, 36])));
        second.record_in_sync(&set(&[2])).unwrap();
        // Giving up what was lost touches nothing of the new leader's.
        first.resign();
        assert!(second.is_held());
        second.record_in_sync(&set(&[2, 3])).unwrap();
    });
}

#[test]
fn a_leader_whose_key_was_deleted_notices_at_its_next_renewal() {
    let etcd = Etcd::start();
    let one = etcd.brief();
    let first = elected(&one, 1);
    etcd.delete("lavinmq/leader/1");
    assert!(first.wait_lost(PATIENCE));
    assert!(matches!(first.record_in_sync(&set(&[1])), Err(CoordinatorError::Lost)));
    // The lease is still there, and is this handle's.
    let again = elected(&one, 1);
    assert!(again.is_held() && !first.is_held());
    first.resign();
    assert!(!again.wait_lost(Duration::ZERO));
}

#[test]
fn whoever_is_elected_because_a_lease_was_revoked_waits_until_the_former_leader_is_through() {
    let etcd = Etcd::start();
    let (one, two) = (etcd.brief(), etcd.brief());
    let mut leader = elected(&one, 1);
    for round in 0..2 {
        let (here, node, former) = if round % 2 == 0 { (&two, 2, 1) } else { (&one, 1, 2) };
        leader = thread::scope(|scope| {
            let campaign = candidate(scope, &etcd, here, node, &Stop::new());
            etcd.revoke(former);
            let next = campaign.join().unwrap().unwrap();
            assert!(!leader.is_held(), "two lead in round {round}");
            next
        });
    }
    // Who is told that the former leader is through does not wait.
    thread::scope(|scope| {
        let mut config = etcd.config();
        config.lease_ttl = Duration::from_secs(3600);
        let three = EtcdCoordinator::new(&config).unwrap();
        leader.resign();
        let long = elected(&three, 3);
        let campaign = candidate(scope, &etcd, &two, 2, &Stop::new());
        etcd.revoke(3);
        wait_until("it says that it waits", || {
            !logs::lines(&["node 2 is elected, and waits for up to 3600 s"]).is_empty()
        });
        // It has ended all that it did, and says so.
        long.resign();
        assert!(campaign.join().unwrap().is_some());
    });
}

#[test]
fn a_leader_that_crashed_is_succeeded_when_its_lease_has_run_out_and_no_later() {
    let etcd = Etcd::start();
    // All that is left of it.
    etcd.call("lease/grant", &json!({"ID": "77", "TTL": "10"}));
    let key = encode("lavinmq/leader/4d");
    let put = etcd.call("kv/put", &json!({"key": key, "value": encode("tcp://node77:5679"), "lease": "77"}));
    let created = put["header"]["revision"].as_str().unwrap();
    etcd.put("lavinmq/paceline/term", &format!("{created} 10 leads"));
    let leader = elected(&etcd.coordinator(), 78);
    assert!(leader.is_held());
    assert_eq!(logs::lines(&["node 78 is elected, and waits"]), [""; 0]);
    let term = etcd.get("lavinmq/paceline/term").remove(0).1;
    assert!(term.ends_with(" 10 leads") && !term.starts_with(&format!("{created} ")), "{term}");
    leader.resign();
    assert!(etcd.get("lavinmq/paceline/term")[0].1.ends_with(" 10 over"));
}

#[test]
fn sets_are_recorded_in_order_whatever_else_is_recorded() {
    let etcd = Etcd::start();
    let one = etcd.coordinator();
    assert!(!one.remove_from_in_sync_set(id(2)).unwrap());
    let first = elected(&one, 1);
    for ids in [&[1, 2][..], &[1], &[1, 2, 3]] {
        first.record_in_sync(&set(ids)).unwrap();
    }
    assert!(one.remove_from_in_sync_set(id(2)).unwrap() && !one.remove_from_in_sync_set(id(2)).unwrap());
    assert_eq!(one.in_sync_set().unwrap(), Some(set(&[1, 3])));
    first.record_in_sync(&set(&[1, 4])).unwrap();
    assert!(one.remove_from_in_sync_set(id(4)).unwrap());
    let last = one.remove_from_in_sync_set(id(1));
    assert!(matches!(last, Err(CoordinatorError::LastInSync(node)) if node == id(1)));
    assert_eq!(one.in_sync_set().unwrap(), Some(set(&[1])));
    etcd.put("lavinmq/isr", "");
    let error = one.in_sync_set().unwrap_err().to_string();
    assert!(error.contains("lavinmq/isr in etcd") && error.contains("base 36"), "{error}");
    first.record_in_sync(&set(&[1])).unwrap();
}

#[test]
fn what_is_recorded_beside_a_set_counts_until_somebody_else_writes_the_set() {
    let etcd = Etcd::start();
    let coordinator = etcd.coordinator();
    let first = elected(&coordinator, 1);
    let at = |position| Some(EpochPosition { epoch: 7, position: StreamPosition(position) });
    let committed = || coordinator.committed().unwrap();
    assert_eq!(committed(), None);
    first.record(&set(&[1, 2, 3]), at(9)).unwrap();
    first.record(&set(&[1, 2, 3]), at(12)).unwrap();
    assert_eq!(committed(), at(12));
    assert_eq!(etcd.get("lavinmq/paceline/committed").remove(0).1, "7:12");
    assert!(coordinator.remove_from_in_sync_set(id(3)).unwrap());
    assert_eq!(
        (coordinator.in_sync_set().unwrap(), committed()),
        (Some(set(&[1, 2])), at(12)),
        "of fewer it is true as well"
    );
    // Somebody who knows nothing of it, and says the same.
    etcd.put("lavinmq/isr", "1,2");
    assert_eq!(committed(), None);
    first.record(&set(&[1, 2]), at(12)).unwrap();
    assert_eq!(committed(), at(12));
    etcd.delete("lavinmq/isr");
    assert_eq!(committed(), at(12), "who deletes the set says nothing of what was committed");
    first.record(&set(&[1, 2]), None).unwrap();
    assert!(committed().is_none() && etcd.get("lavinmq/paceline/committed").is_empty());
    first.record(&set(&[1]), at(20)).unwrap();
    first.resign();
    assert!(matches!(first.record(&set(&[1]), at(30)), Err(CoordinatorError::Lost)));
    assert_eq!(committed(), at(20));
    etcd.put("lavinmq/isr", "1");
    etcd.put("lavinmq/paceline/committed", "nonsense");
    assert_eq!(committed(), None);
    etcd.delete("lavinmq/isr");
    assert!(
        matches!(coordinator.committed(), Err(CoordinatorError::Unexpected(what)) if what.contains("paceline/committed"))
    );
}

#[test]
fn a_cancelled_campaign_leaves_no_ghost() {
    let etcd = Etcd::start();
    let (one, two) = (etcd.coordinator(), etcd.coordinator());
    let first = elected(&one, 1);
    thread::scope(|scope| {
        let stop = Stop::new();
        let campaign = candidate(scope, &etcd, &two, 2, &stop);
        let twice = two.campaign(id(2), &uri(2), &Stop::new());
        assert!(matches!(twice, Err(CoordinatorError::IdInUse { .. })));
        stop.set();
        assert!(campaign.join().unwrap().is_none());
        assert_eq!(etcd.get("lavinmq/leader/"), [("lavinmq/leader/1".to_owned(), uri(1))]);
        assert_eq!(etcd.leases(), 1);
        // One that was cancelled before it began.
        assert!(two.campaign(id(2), &uri(2), &stop).unwrap().is_none());
    });
    first.resign();
    assert_eq!(etcd.get("lavinmq/leader/"), []);
    assert!(elected(&two, 2).is_held());
}

#[test]
fn the_secret_is_made_once_by_ten_at_once() {
    let etcd = Etcd::start();
    let secrets: Vec<Secret> = thread::scope(|scope| {
        let nodes: Vec<_> = (0..10).map(|_| scope.spawn(|| etcd.coordinator().secret().unwrap())).collect();
        nodes.into_iter().map(|node| node.join().unwrap()).collect()
    });
    let [(key, recorded)] = &etcd.get("lavinmq/clustering_secret")[..] else { panic!() };
    assert_eq!((key.as_str(), recorded.len()), ("lavinmq/clustering_secret", 44));
    assert!(secrets.iter().all(|secret| secret.matches(recorded.as_bytes())));
    assert!(logs::lines(&[recorded]).is_empty());
}

#[test]
fn a_new_cluster_beside_another_one_says_that_the_prefix_may_be_wrong() {
    let etcd = Etcd::start();
    let with = |prefix: &str| {
        let mut config = etcd.config();
        config.prefix = prefix.into();
        EtcdCoordinator::new(&config).unwrap()
    };
    let (orders, billing) = (with("orders-7c1f"), with("billing/eu"));
    orders.secret().unwrap();
    assert!(logs::lines(&["WARN", "orders-7c1f/"]).is_empty());
    billing.secret().unwrap();
    let warned = logs::lines(&["WARN", "nothing was recorded in etcd below billing/eu/", "below orders-7c1f:"]);
    assert_eq!(warned.len(), 1, "{warned:?}");
    billing.secret().unwrap();
    assert_eq!(logs::lines(&["WARN", "below billing/eu/"]).len(), 1);
    // Two prefixes are two clusters.
    let (first, second) = (elected(&orders, 1), elected(&billing, 2));
    first.record_in_sync(&set(&[1])).unwrap();
    assert!(second.is_held() && billing.in_sync_set().unwrap().is_none());
}

#[test]
fn an_id_in_use_by_another_node_is_refused_and_one_left_by_a_crash_is_waited_for() {
    let etcd = Etcd::start();
    let (one, other) = (etcd.brief(), etcd.brief());
    // A node that crashed left its lease, and a key.
    etcd.call("lease/grant", &json!({"ID": "1", "TTL": "2"}));
    etcd.call("kv/put", &json!({"key": encode("lavinmq/leader/1"), "value": encode("tcp://old:1"), "lease": "1"}));
    let bid = encode("lavinmq/paceline/positions/1");
    etcd.call("kv/put", &json!({"key": bid, "value": encode("0 -"), "lease": "1"}));
    let leader = other.observe_leader().unwrap();
    observe(&leader, |state| state.as_ref().is_some_and(|leader| leader.uri == "tcp://old:1"));
    let first = elected(&one, 1);
    assert_eq!(etcd.get("lavinmq/leader/"), [("lavinmq/leader/1".to_owned(), uri(1))]);
    match other.campaign(id(1), &uri(7), &Stop::new()) {
        Err(error @ CoordinatorError::IdInUse { .. }) => {
            let text = error.to_string();
            assert!(text.contains("node id 1") && text.contains("tcp://node1:5679"), "{text}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("an id was used twice"),
    }
    assert!(first.is_held());
    // Through the same handle it is the same node, which begins anew.
    let again = elected(&one, 1);
    assert!(again.is_held() && !first.is_held());
    let refused = one.campaign(id(2), "node2:5679", &Stop::new());
    assert!(matches!(refused, Err(CoordinatorError::Setting { .. })));
}

#[test]
fn an_id_in_use_in_another_cluster_of_the_same_etcd_is_told_with_that_cluster() {
    let etcd = Etcd::start();
    let mut config = etcd.brief_config();
    config.prefix = "redis".to_owned();
    let other = EtcdCoordinator::new(&config).unwrap();
    let theirs = elected(&other, 1);
    let error = etcd.brief().campaign(id(1), &uri(1), &Stop::new()).map(drop).unwrap_err();
    assert!(matches!(&error, CoordinatorError::IdInOtherCluster { key, .. } if key == "redis/leader/1"), "{error}");
    assert!(theirs.is_held() && error.to_string().contains("an id of its own"), "{error}");
    elected(&etcd.brief(), 2);
}

#[test]
fn a_leader_that_is_not_well_is_not_renewed() {
    let etcd = Etcd::start();
    let (one, two) = (etcd.brief(), etcd.brief());
    let first = elected(&one, 1);
    let is_well = Arc::new(AtomicBool::new(true));
    let asked = is_well.clone();
    let (tell, told) = crossbeam_channel::unbounded();
    first.set_health(Box::new(move || {
        tell.send(()).unwrap();
        asked.load(Ordering::SeqCst)
    }));
    told.recv_timeout(PATIENCE).unwrap();
    is_well.store(false, Ordering::SeqCst);
    let second = elected(&two, 2);
    assert!(!first.is_held() && second.is_held());
    // It was well again too late.
    is_well.store(true, Ordering::SeqCst);
    assert!(first.wait_lost(Duration::ZERO));
    assert!(!logs::lines(&["node 1 is no longer leader", "says that it is not well"]).is_empty());
}

#[test]
fn a_health_check_that_hangs_costs_the_leadership_and_nothing_else() {
    let etcd = Etcd::start();
    let (one, two) = (etcd.brief(), etcd.brief());
    let first = elected(&one, 1);
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let (tell, told) = crossbeam_channel::unbounded();
    first.set_health(Box::new(move || {
        tell.send(()).unwrap();
        held.recv().is_err()
    }));
    told.recv_timeout(PATIENCE).unwrap();
    assert!(first.wait_lost(PATIENCE));
    assert!(elected(&two, 2).is_held());
    drop(release);
    first.resign();
    assert!(!first.is_held());
}

/// Set for the process that [`a_leader_that_was_stopped_knows_at_once_that_it_is_none_any_more`] starts.
const NODE_ETCD: &str = "COORDINATOR_TEST_ETCD";

/// A leader in a process of its own, which says over and over whether it is.
#[test]
fn node_of_another_test() {
    let Ok(endpoint) = std::env::var(NODE_ETCD) else { return };
    let mut config = EtcdConfig::new([endpoint.parse().unwrap()]);
    config.lease_ttl = Duration::from_secs(3);
    config.answer_timeout = Duration::from_secs(1);
    let leadership = elected(&EtcdCoordinator::new(&config).unwrap(), 1);
    println!("elected");
    while leadership.is_held() {
        println!("leader");
    }
    assert!(leadership.wait_lost(Duration::ZERO) && !leadership.is_held());
    let refused = leadership.record_in_sync(&set(&[1]));
    assert!(matches!(refused, Err(CoordinatorError::Lost)));
    println!("refused");
}

#[test]
fn a_leader_that_was_stopped_knows_at_once_that_it_is_none_any_more() {
    let etcd = Etcd::start();
    let two = etcd.brief();
    let program = std::env::current_exe().unwrap();
    let endpoint = format!("{NODE_ETCD}={}", etcd.url(0));
    let args = [endpoint.as_str(), program.to_str().unwrap(), "--exact", "node_of_another_test", "--nocapture"];
    let mut node = etcd.stage.start("node", find("env", "coreutils"), args);
    wait_until("the other process is leader", || node.log().contains("elected\nleader"));
    node.signal(Signal::STOP);
    let second = elected(&two, 2);
    second.record_in_sync(&set(&[2])).unwrap();
    let before = node.log();
    node.signal(Signal::CONT);
    assert!(node.wait().success());
    let log = node.log();
    let after = log.strip_prefix(&before).unwrap();
    // It may have been stopped after it looked, and before it said what it saw.
    let said = after.lines().filter(|line| *line == "leader").count();
    assert!(said <= 1 && after.contains("refused"), "{after}");
    assert!(second.is_held());
    assert_eq!(two.in_sync_set().unwrap(), Some(set(&[2])));
}

#[test]
fn watches_survive_restarts_and_compactions_of_etcd() {
    let mut etcd = Etcd::start();
    let one = etcd.coordinator();
    let (in_sync, leader) = (one.observe_in_sync_set().unwrap(), one.observe_leader().unwrap());
    let first = elected(&one, 1);
    first.record_in_sync(&set(&[1])).unwrap();
    assert_eq!(observe(&in_sync, Option::is_some), Some(set(&[1])));
    observe(&leader, Option::is_some);
    for round in 2..5 {
        etcd.kill(0);
        etcd.restart(0);
        // The watch may come back before, amid or after these.
        etcd.put("lavinmq/isr", &format!("1,{round}"));
        etcd.call("kv/compaction", &json!({"revision": etcd.revision(), "physical": true}));
        etcd.put("other", "x");
        assert_eq!(observe(&in_sync, |state| *state == Some(set(&[1, round]))).unwrap(), set(&[1, round]));
        // It watches on as before.
        etcd.put("lavinmq/isr", "1,zzz");
        observe(&in_sync, |state| state.as_ref().is_some_and(|set| set.to_string() == "1,zzz"));
    }
    // A restart of etcd is no reason to lose a leadership.
    assert!(first.is_held());
    first.record_in_sync(&set(&[1])).unwrap();
    assert!(leader.receiver().is_empty());
    first.resign();
    assert_eq!(observe(&leader, Option::is_none), None);
}

#[test]
fn what_makes_no_sense_is_left_out_of_a_watch() {
    let etcd = Etcd::start();
    let one = etcd.coordinator();
    let in_sync = one.observe_in_sync_set().unwrap();
    assert_eq!(observe(&in_sync, |_| true), None);
    etcd.put("lavinmq/isr", "no ids");
    wait_until("the watch says so", || !logs::lines(&["WARN etcd-in-sync", "no ids"]).is_empty());
    etcd.put("lavinmq/isr", "1");
    assert_eq!(observe(&in_sync, |_| true), Some(set(&[1])));
    etcd.delete("lavinmq/isr");
    assert_eq!(observe(&in_sync, |_| true), None);
}

#[test]
fn the_loss_of_one_member_of_three_costs_nothing_and_that_of_two_the_leadership() {
    let mut etcd = Etcd::start_members(3);
    // The last member is asked first, and goes.
    let mut config = etcd.config_from(2);
    let one = EtcdCoordinator::new(&config).unwrap();
    let first = elected(&one, 1);
    let in_sync = one.observe_in_sync_set().unwrap();
    first.record_in_sync(&set(&[1])).unwrap();
    observe(&in_sync, Option::is_some);
    etcd.kill(2);
    first.record_in_sync(&set(&[1, 2])).unwrap();
    assert_eq!(observe(&in_sync, |_| true), Some(set(&[1, 2])));
    // By then no renewal from before counts any more.
    assert!(!first.wait_lost(config.lease_ttl * 4 / 5));

    etcd.kill(1);
    // Whatever the last renewal was, the time since is shorter than a lease.
    assert!(first.wait_lost(config.lease_ttl) && !first.is_held());
    assert!(matches!(first.record_in_sync(&set(&[1])), Err(CoordinatorError::Lost)));
    config.call_timeout = config.answer_timeout;
    let error = EtcdCoordinator::new(&config).unwrap().in_sync_set().unwrap_err();
    assert!(matches!(error, CoordinatorError::Unavailable(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains(&etcd.url(0)) && text.contains("check that most"), "{text}");

    etcd.restart(1);
    etcd.restart(2);
    let again = elected(&one, 1);
    assert!(again.is_held() && !first.is_held());
    again.record_in_sync(&set(&[1])).unwrap();
    assert_eq!(observe(&in_sync, |state| *state == Some(set(&[1]))), Some(set(&[1])));
}

#[test]
fn leadership_ends_here_early_enough_to_stop_what_is_active() {
    let etcd = Etcd::start();
    let mut config = etcd.config();
    (config.lease_ttl, config.stop_margin) = (Duration::from_secs(60), Duration::from_secs(30));
    let patient = EtcdCoordinator::new(&config).unwrap();
    assert_eq!(patient.stop_margin(), config.stop_margin);
    let held_until = elected(&patient, 1).held_until().unwrap();
    assert!(held_until <= Instant::now() + config.lease_ttl - config.stop_margin);

    // Such leases are renewed so much more often.
    (config.lease_ttl, config.stop_margin) = (Duration::from_secs(4), Duration::from_secs(2));
    config.answer_timeout = config.answer_timeout_max();
    let brief = EtcdCoordinator::new(&config).unwrap();
    assert!(!elected(&brief, 2).wait_lost(config.lease_ttl));

    config.stop_margin = Duration::from_secs(3);
    let error = EtcdCoordinator::new(&config).unwrap_err().to_string();
    assert!(error.contains("stop_margin") && error.contains("at most half of lease_ttl, 4s"), "{error}");
}

#[test]
fn a_member_that_stands_still_is_passed_over() {
    let etcd = Etcd::start_members(3);
    let config = etcd.config_from(1);
    let one = EtcdCoordinator::new(&config).unwrap();
    let first = elected(&one, 1);
    let in_sync = one.observe_in_sync_set().unwrap();
    observe(&in_sync, |_| true);
    etcd.signal(1, Signal::STOP);
    first.record_in_sync(&set(&[1])).unwrap();
    // The watch's member says nothing, not even that it is gone.
    assert_eq!(observe(&in_sync, |_| true), Some(set(&[1])));
    assert!(!first.wait_lost(config.lease_ttl * 4 / 5));
    etcd.signal(1, Signal::CONT);
}

#[test]
fn writes_tell_apart_what_surely_was_not_recorded() {
    let mut etcd = Etcd::start();
    let mut config = etcd.config();
    config.lease_ttl = Duration::from_secs(60);
    config.answer_timeout = Duration::from_millis(500);
    config.call_timeout = Duration::from_secs(1);
    let one = EtcdCoordinator::new(&config).unwrap();
    let first = elected(&one, 1);
    wait_until("etcd has the first set", || first.record_in_sync(&set(&[1])).is_ok());
    etcd.signal(0, Signal::STOP);
    let error = first.record_in_sync(&set(&[1, 2])).unwrap_err();
    assert!(matches!(error, CoordinatorError::Unknown(_)), "{error}");
    etcd.signal(0, Signal::CONT);
    // Whether or not the former comes through, this one comes after it.
    wait_until("etcd answers again", || first.record_in_sync(&set(&[1, 3])).is_ok());
    assert_eq!(etcd.coordinator().in_sync_set().unwrap(), Some(set(&[1, 3])));
    etcd.kill(0);
    // The connection that was open breaks, and with it what is known; connecting is refused.
    let _ = first.record_in_sync(&set(&[1]));
    let error = first.record_in_sync(&set(&[1])).unwrap_err();
    assert!(matches!(error, CoordinatorError::NotRecorded(_)) && error.to_string().contains("refused"), "{error}");
    assert!(first.is_held());
    etcd.restart(0);
    assert_eq!(etcd.coordinator().in_sync_set().unwrap(), Some(set(&[1, 3])));
    wait_until("etcd has the last set", || first.record_in_sync(&set(&[1])).is_ok());
}

/// Forwards to etcd; while it is told to, it keeps what is written for later.
struct Post {
    address: SocketAddr,
    holds: Arc<AtomicBool>,
    held: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Post {
    fn start(etcd: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let post = Self { address, holds: Arc::default(), held: Arc::default() };
        let (holds, held) = (post.holds.clone(), post.held.clone());
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(etcd).unwrap());
                let (mut from, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut from, &mut to));
                let (holds, held) = (holds.clone(), held.clone());
                thread::spawn(move || Self::forward(near, &far, &holds, &held));
            }
        });
        post
    }

    fn forward(mut near: TcpStream, mut far: &TcpStream, holds: &AtomicBool, held: &Mutex<Vec<Vec<u8>>>) {
        let mut kept = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = near.read(&mut buffer) {
            let bytes = &buffer[..length];
            let is_write = String::from_utf8_lossy(bytes).contains("/kv/txn");
            if !kept.is_empty() || is_write && holds.load(Ordering::SeqCst) {
                kept.extend_from_slice(bytes);
            } else if far.write_all(bytes).is_err() {
                break;
            }
        }
        if !kept.is_empty() {
            held.lock().push(kept);
        }
        let _ = far.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_write_that_arrives_late_undoes_no_later_one() {
    let etcd = Etcd::start();
    let address = etcd.url(0).strip_prefix("http://").unwrap().parse().unwrap();
    let post = Post::start(address);
    let mut config = EtcdConfig::new([post.address.to_string().parse().unwrap()]);
    config.lease_ttl = Duration::from_secs(600);
    config.answer_timeout = Duration::from_secs(1);
    config.call_timeout = Duration::from_secs(2);
    let one = EtcdCoordinator::new(&config).unwrap();
    let first = elected(&one, 1);
    wait_until("the first is recorded", || first.record_in_sync(&set(&[1])).is_ok());
    post.holds.store(true, Ordering::SeqCst);
    let error = first.record_in_sync(&set(&[1, 2])).unwrap_err();
    assert!(matches!(error, CoordinatorError::Unknown(_)), "{error}");
    post.holds.store(false, Ordering::SeqCst);
    wait_until("the third is recorded", || first.record_in_sync(&set(&[1, 3])).is_ok());
    wait_until("the second was held up", || !post.held.lock().is_empty());
    let reader = etcd.coordinator();
    for late in std::mem::take(&mut *post.held.lock()) {
        let mut etcd = TcpStream::connect(address).unwrap();
        etcd.write_all(&late).unwrap();
        etcd.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 1024];
        let length = etcd.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.contains("200 OK"), "{answer}");
    }
    assert_eq!(reader.in_sync_set().unwrap(), Some(set(&[1, 3])));
}

fn user(name: &str, password: &str) -> Option<EtcdUser> {
    Some(EtcdUser { name: name.into(), password: Secret::new(password).unwrap() })
}

#[test]
fn users_are_let_in_by_name_and_password_and_again_when_their_token_is_void() {
    const PASSWORD: &str = "correct horse 61ce";
    let mut etcd = Etcd::start();
    let admin = [("root", "the administrator's"), ("node", PASSWORD), ("guest", "the guest's")];
    for (name, password) in admin {
        etcd.call("auth/user/add", &json!({"name": name, "password": password}));
    }
    etcd.call("auth/user/grant", &json!({"user": "root", "role": "root"}));
    etcd.call("auth/role/add", &json!({"name": "nodes"}));
    let below = json!({"permType": "READWRITE", "key": encode("lavinmq/"), "range_end": encode("lavinmq0")});
    etcd.call("auth/role/grant", &json!({"name": "nodes", "perm": below}));
    etcd.call("auth/user/grant", &json!({"user": "node", "role": "nodes"}));
    let with = |user: Option<EtcdUser>| {
        let mut config = etcd.config();
        config.user = user;
        EtcdCoordinator::new(&config).unwrap()
    };
    let node = with(user("node", PASSWORD));
    // Before etcd asks for it, too.
    assert!(node.in_sync_set().unwrap().is_none());
    assert!(!logs::lines(&["WARN etcd lets everyone in", "node"]).is_empty());
    etcd.call("auth/enable", &json!({}));

    let refused = |user: Option<EtcdUser>, parts: &[&str]| {
        let error = with(user).secret().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, CoordinatorError::Refused(_)), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    refused(None, &["set its user and password"]);
    refused(user("node", "wrong 1f9a"), &["user node", "check name and password"]);
    refused(user("guest", "the guest's"), &["user guest", "below lavinmq/", "etcdctl role grant-permission"]);

    let in_sync = node.observe_in_sync_set().unwrap();
    observe(&in_sync, |_| true);
    node.secret().unwrap();
    let first = elected(&node, 1);
    first.record_in_sync(&set(&[1])).unwrap();
    assert_eq!(observe(&in_sync, |_| true), Some(set(&[1])));
    // etcd keeps its tokens in memory.
    etcd.kill(0);
    etcd.restart_closed(0);
    first.record_in_sync(&set(&[1, 2])).unwrap();
    assert_eq!(observe(&in_sync, |_| true), Some(set(&[1, 2])));
    assert!(first.is_held());
    first.resign();
    for secret in [PASSWORD, "wrong 1f9a", "the guest's"] {
        assert!(logs::lines(&[secret]).is_empty());
    }
}

#[test]
fn etcd_is_reached_over_tls_with_the_authority_in_a_file() {
    let stage = Stage::new();
    let path = |name: &str| stage.path(name).to_str().unwrap().to_owned();
    let openssl = |args: &[&str]| run(Command::new(find("openssl", "openssl")).args(args));
    let [ca, ca_key, cert, key, request] = ["ca.pem", "ca-key.pem", "cert.pem", "key.pem", "request.pem"].map(&path);
    let extensions = path("extensions");
    std::fs::write(&extensions, "subjectAltName=IP:127.0.0.1").unwrap();
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(&[&["req", "-x509"], &new_key[..], &["-keyout", &ca_key, "-out", &ca, "-subj", "/CN=ca"]].concat());
    openssl(&[&["req"], &new_key[..], &["-keyout", &key, "-out", &request, "-subj", "/CN=etcd"]].concat());
    let signed = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-out", &cert];
    openssl(&[&signed[..], &["-extfile", &extensions]].concat());
    let etcd = Etcd::start_on(stage, 1, "https", &["--cert-file", &cert, "--key-file", &key]);

    let with = |ca_file: Option<&str>| {
        let mut config = etcd.config();
        config.ca_file = ca_file.map(Into::into);
        config.call_timeout = config.answer_timeout;
        EtcdCoordinator::new(&config)
    };
    let one = with(Some(&ca)).unwrap();
    let in_sync = one.observe_in_sync_set().unwrap();
    assert_eq!(observe(&in_sync, |_| true), None);
    let first = elected(&one, 1);
    first.record_in_sync(&set(&[1])).unwrap();
    assert_eq!(observe(&in_sync, |_| true), Some(set(&[1])));

    let error = with(None).unwrap().in_sync_set().unwrap_err().to_string();
    assert!(error.contains("ca_file"), "{error}");
    for bad in [&key, &format!("{ca}.none")] {
        assert!(matches!(with(Some(bad)), Err(CoordinatorError::Setting { name: "ca_file", .. })), "{bad}");
    }
    let mut plain = etcd.config();
    plain.call_timeout = plain.answer_timeout;
    plain.endpoints = vec![etcd.url(0).replace("https", "http").parse().unwrap()];
    let error = EtcdCoordinator::new(&plain).unwrap().in_sync_set().unwrap_err().to_string();
    assert!(error.contains("if it speaks TLS"), "{error}");
}

#[test]
fn candidates_of_etcds_own_election_service_and_ours_take_turns() {
    let etcd = Etcd::start();
    let one = etcd.coordinator();
    let leader = one.observe_leader().unwrap();
    let name = encode("lavinmq/leader");
    let campaign = |lease: &str, uri: &str| -> Value {
        etcd.call("lease/grant", &json!({"ID": lease, "TTL": "60"}));
        etcd.call("election/campaign", &json!({"name": name, "lease": lease, "value": encode(uri)}))
    };
    // As a LavinMQ node does it; a lease id of 9 digits is as good as one of its.
    let theirs = campaign("123456789", "tcp://lavin:5679");
    let seen = observe(&leader, Option::is_some).unwrap();
    assert_eq!((seen.uri.as_str(), seen.id), ("tcp://lavin:5679", Some(id(123_456_789))));
    thread::scope(|scope| {
        let ours = candidate(scope, &etcd, &one, 35, &Stop::new());
        // What nobody else writes it writes here, or ours would wait until it is surely through.
        let rev = theirs["leader"]["rev"].as_str().unwrap();
        etcd.put("lavinmq/paceline/term", &format!("{rev} 60 over"));
        etcd.call("election/resign", &json!({"leader": theirs["leader"]}));
        let ours = ours.join().unwrap().unwrap();
        let current = etcd.call("election/leader", &json!({"name": name}));
        assert_eq!(
            (&current["kv"]["key"], &current["kv"]["lease"]),
            (&json!(encode("lavinmq/leader/23")), &json!("35"))
        );
        let theirs = scope.spawn(|| campaign("77", "tcp://lavin2:5679"));
        wait_until("the other one is a candidate", || etcd.get("lavinmq/leader/").len() == 2);
        assert!(ours.is_held() && !theirs.is_finished());
        ours.resign();
        theirs.join().unwrap();
        observe(&leader, |state| state.as_ref().is_some_and(|leader| leader.uri == "tcp://lavin2:5679"));
    });
}

/// What answers every request so; one request a connection. Calls to it try for so long.
fn fake(call_timeout: Duration, mut answer: impl FnMut(&str, &mut dyn Write) + Send + 'static) -> EtcdCoordinator {
    support::begin();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = EtcdConfig::new([listener.local_addr().unwrap().to_string().parse().unwrap()]);
    config.answer_timeout = config.answer_timeout.min(call_timeout);
    config.call_timeout = call_timeout;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            answer(&String::from_utf8_lossy(&request[..length]), &mut stream);
        }
    });
    EtcdCoordinator::new(&config).unwrap()
}

fn reply(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn a_write_that_is_refused_at_its_second_attempt_may_have_been_done_at_its_first() {
    let recorded = format!(r#"{{"kvs":[{{"value":"{}","mod_revision":"7"}}]}}"#, encode("1,2"));
    let write_twice = |first_is_lost: bool| {
        let recorded = recorded.clone();
        let mut is_lost = first_is_lost;
        let etcd = fake(PATIENCE, move |request, stream| {
            let answer = if request.contains("/kv/range") {
                reply("200 OK", &recorded)
            } else if std::mem::take(&mut is_lost) {
                return;
            } else {
                reply("400 Bad Request", r#"{"error":"etcdserver: mvcc: database space exceeded","code":8}"#)
            };
            stream.write_all(answer.as_bytes()).unwrap();
        });
        etcd.remove_from_in_sync_set(id(2)).unwrap_err()
    };
    assert!(matches!(write_twice(true), CoordinatorError::Unknown(text) if text.contains("space exceeded")));
    assert!(matches!(write_twice(false), CoordinatorError::NotRecorded(text) if text.contains("space exceeded")));
}

#[test]
fn answers_without_end_or_sense_are_cut_off() {
    let brief = Duration::from_millis(500);
    let endless = fake(brief, |_, stream| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"kvs\":[";
        stream.write_all(head.as_bytes()).unwrap();
        while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
    });
    let error = endless.in_sync_set().unwrap_err();
    assert!(matches!(error, CoordinatorError::Unavailable(_)), "{error}");
    for (body, status, expected) in [
        ("<html>", "200 OK", "makes no sense"),
        ("nothing here", "404 Not Found", "v3 gateway"),
        (r#"{"error":{"message":"go away","code":5}}"#, "200 OK", "go away"),
        (r#"{"code":5,"message":"go away"}"#, "503 Service Unavailable", "go away"),
        ("", "302 Found\r\nLocation: http://127.0.0.1:1/", "302"),
    ] {
        let head = reply(status, body);
        let fake = fake(brief, move |_, stream| {
            // A client that gave up does not read it.
            let _ = stream.write_all(head.as_bytes());
        });
        // On a busy machine the last attempt of a call may end otherwise.
        wait_until(expected, || fake.in_sync_set().unwrap_err().to_string().contains(expected));
    }
}

#[test]
fn an_etcd_that_is_not_there_is_reported_with_its_address() {
    support::begin();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut config = EtcdConfig::new([format!("127.0.0.1:{port}").parse().unwrap()]);
    config.call_timeout = config.answer_timeout;
    let nobody = EtcdCoordinator::new(&config).unwrap();
    let error = nobody.campaign(id(1), &uri(1), &Stop::new()).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, CoordinatorError::Unavailable(_)), "{text}");
    assert!(text.contains(&format!("http://127.0.0.1:{port}")) && text.contains("check that"), "{text}");
    // Observing goes on trying, and ends when it is told to.
    let leader = nobody.observe_leader().unwrap();
    assert!(leader.receiver().is_empty());
    drop(leader);
}

/// A node that campaigns again and again; returns the times from when to when it was leader.
fn campaign_on(
    etcd: &EtcdCoordinator,
    node: i32,
    seed: u64,
    stop: &Stop,
    elections: &AtomicU32,
) -> Vec<(Instant, Instant)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut times = Vec::new();
    while !stop.is_set() {
        // It fails while etcd cannot decide.
        let Ok(Some(leadership)) = etcd.campaign(id(node), &uri(node), stop) else { continue };
        let began = Instant::now();
        elections.fetch_add(1, Ordering::SeqCst);
        let until = began + Duration::from_millis(random.u64(500..6000));
        let mut ended = began;
        loop {
            let now = Instant::now();
            if !leadership.is_held() {
                break;
            }
            ended = now;
            if stop.is_set() || now >= until {
                leadership.resign();
            }
            let _ = leadership.record_in_sync(&set(&[node]));
        }
        times.push((began, ended));
    }
    times
}

#[test]
fn no_two_nodes_are_leader_at_once_whatever_happens_to_etcd() {
    let mut etcd = Etcd::start_members(3);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (stop, elections) = (Stop::new(), AtomicU32::new(0));
    let nodes: Vec<_> = (1..=3).map(|_| etcd.brief()).collect();
    let mut times = thread::scope(|scope| {
        let stop_at_end = StopOnEnd(&stop);
        let campaigns: Vec<_> = (1..)
            .zip(&nodes)
            .map(|(node, etcd)| {
                let (stop, elections) = (&stop, &elections);
                scope.spawn(move || campaign_on(etcd, node, seed ^ u64::from(node.unsigned_abs()), stop, elections))
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        for fault in 1.. {
            // For shorter and for longer than a leadership lasts.
            let pause = Duration::from_millis(random.u64(200..4000));
            let member = random.usize(0..3);
            if random.bool() {
                etcd.signal(member, Signal::STOP);
                assert!(!stop.wait(pause));
                etcd.signal(member, Signal::CONT);
            } else {
                etcd.kill(member);
                assert!(!stop.wait(pause));
                etcd.restart(member);
            }
            if fault >= 6 && elections.load(Ordering::SeqCst) >= 3 {
                break;
            }
            assert!(Instant::now() < deadline, "hardly anybody is elected");
        }
        drop(stop_at_end);
        campaigns.into_iter().flat_map(|campaign| campaign.join().unwrap()).collect::<Vec<_>>()
    });
    times.sort();
    println!("{} leaderships", times.len());
    for pair in times.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two leaders at once, for {:?}", pair[0].1 - pair[1].0);
    }
}

/// Ends the campaigns of a test, also of one that fails.
struct StopOnEnd<'a>(&'a Stop);

impl Drop for StopOnEnd<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}
