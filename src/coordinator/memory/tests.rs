use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn id(id: i32) -> NodeId {
    NodeId::new(id).unwrap()
}

fn elected(coordinator: &MemoryCoordinator, node: i32) -> Arc<dyn Leadership> {
    coordinator.campaign(id(node), &format!("tcp://node{node}:1"), &Stop::new()).unwrap().unwrap()
}

#[test]
fn the_next_candidate_is_elected_when_the_leader_goes_and_the_former_one_cannot_record() {
    let one = MemoryCoordinator::new();
    let two = one.clone();
    let observation = two.observe_leader().unwrap();
    let seen = || observation.receiver().recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen(), None);
    let first = elected(&one, 1);
    let leader = seen().unwrap();
    assert_eq!((leader.id, leader.uri.as_str()), (Some(id(1)), "tcp://node1:1"));
    assert!(first.is_held() && !first.wait_lost(Duration::ZERO));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| elected(&two, 2));
        one.expire_leadership();
        assert!(first.wait_lost(PATIENCE) && !first.is_held());
        let second = second.join().unwrap();
        first.resign();
        assert!(second.is_held());
        second.record_in_sync(&InSyncSet::of(id(2))).unwrap();
        assert!(matches!(first.record_in_sync(&InSyncSet::of(id(1))), Err(CoordinatorError::Lost)));
        assert_eq!(one.in_sync_set().unwrap(), Some(InSyncSet::of(id(2))));
    });
    // Dropped with the scope, so given up.
    while seen().is_some() {}
}

#[test]
fn a_cancelled_campaign_leaves_no_candidate_and_an_id_is_not_used_twice() {
    let one = MemoryCoordinator::new();
    let first = elected(&one, 1);
    let two = one.clone();
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let campaign = scope.spawn(|| two.campaign(id(2), "tcp://node2:1", &stop));
        let cancelled = Stop::new();
        cancelled.set();
        // Until the campaign has begun, this one is only cancelled.
        while one.campaign(id(2), "", &cancelled).is_ok() {
            std::thread::yield_now();
        }
        stop.set();
        assert!(campaign.join().unwrap().unwrap().is_none());
    });
    let again = elected(&one, 1);
    assert!(again.is_held() && !first.is_held());
    let taken = two.campaign(id(1), "", &Stop::new());
    assert!(matches!(taken, Err(CoordinatorError::IdInUse { uri: Some(uri), .. }) if uri == "tcp://node1:1"));
    drop(again);
    assert!(elected(&two, 2).is_held());
}

#[test]
fn writes_fail_as_they_are_told_to() {
    let cluster = MemoryCoordinator::new();
    let leader = elected(&cluster, 1);
    let (old, new) = (InSyncSet::of(id(1)), InSyncSet::new([id(1), id(2)]).unwrap());
    for (fault, recorded) in [
        (Some(WriteFault::NotRecorded), &old),
        (Some(WriteFault::UnknownNotDone), &old),
        (Some(WriteFault::UnknownDone), &new),
        (None, &new),
    ] {
        cluster.set_in_sync_set(Some(old.clone()));
        cluster.set_write_fault(fault);
        let result = leader.record_in_sync(&new);
        assert!(match fault {
            None => result.is_ok(),
            Some(WriteFault::NotRecorded) => matches!(result, Err(CoordinatorError::NotRecorded(_))),
            Some(_) => matches!(result, Err(CoordinatorError::Unknown(_))),
        });
        assert_eq!(cluster.in_sync_set().unwrap().as_ref(), Some(recorded), "{fault:?}");
    }
    cluster.hold_writes(true);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| leader.record_in_sync(&old));
        while cluster.writes_waiting() == 0 {
            std::thread::yield_now();
        }
        cluster.expire_leadership();
        cluster.hold_writes(false);
        assert!(matches!(write.join().unwrap(), Err(CoordinatorError::Lost)));
    });
    assert_eq!(cluster.in_sync_set().unwrap(), Some(new));
}

#[test]
fn an_operator_takes_ids_out_of_the_in_sync_set_but_not_the_last() {
    let cluster = MemoryCoordinator::new();
    assert!(!cluster.remove_from_in_sync_set(id(1)).unwrap());
    cluster.set_in_sync_set(Some(InSyncSet::new([id(1), id(2)]).unwrap()));
    assert!(!cluster.remove_from_in_sync_set(id(3)).unwrap());
    assert!(cluster.remove_from_in_sync_set(id(1)).unwrap());
    let last = cluster.remove_from_in_sync_set(id(2));
    assert!(matches!(last, Err(CoordinatorError::LastInSync(node)) if node == id(2)));
    assert_eq!(cluster.in_sync_set().unwrap(), Some(InSyncSet::of(id(2))));
    cluster.set_reachable(false);
    assert!(matches!(cluster.in_sync_set(), Err(CoordinatorError::Unavailable(_))));
}

#[test]
fn a_leader_that_is_not_well_is_not_renewed_and_the_secret_is_made_once() {
    let cluster = MemoryCoordinator::new();
    let leader = elected(&cluster, 1);
    cluster.renew();
    leader.set_health(Box::new(|| true));
    cluster.renew();
    assert!(leader.is_held());
    leader.set_health(Box::new(|| false));
    assert!(leader.is_held());
    cluster.renew();
    assert!(!leader.is_held());
    let secret = cluster.secret().unwrap();
    assert_eq!(secret.as_bytes().len(), 32);
    assert!(cluster.clone().secret().unwrap().matches(secret.as_bytes()));
    assert!(!MemoryCoordinator::new().secret().unwrap().matches(secret.as_bytes()));
}
