use std::sync::Arc;
use std::time::Duration;

use super::channel;
use super::sync::{Condvar, Mutex};
use super::thread;
use super::time::Instant;
use super::world::{Outcome, Policy, Settings, run};

fn simulate(seed: u64, root: impl FnOnce() + Send + 'static) -> Outcome {
    let policy =
        if seed % 2 == 0 { Policy::Random { change: 0.2 } } else { Policy::Priorities { changes: 3, within: 200 } };
    run(Settings { seed, policy, stalls: 0.0, trace: false }, root)
}

#[test]
fn a_lost_update_is_found_and_the_same_seed_finds_it_again() {
    let racy = || {
        let count = Arc::new(Mutex::new(0));
        let add = |count: Arc<Mutex<i32>>| {
            move || {
                let seen = *count.lock();
                *count.lock() = seen + 1;
            }
        };
        let threads = [thread::spawn(add(count.clone())), thread::spawn(add(count.clone()))];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        if *count.lock() != 2 {
            super::world::current().fail("an update was lost".into());
        }
    };
    let found: Vec<u64> = (0..100).filter(|seed| simulate(*seed, racy).failure.is_some()).collect();
    assert!(!found.is_empty() && found.len() < 100, "{found:?}");
    for seed in found {
        let (first, second) = (simulate(seed, racy), simulate(seed, racy));
        assert!(first.failure.is_some() && first.digest == second.digest && first.time == second.time);
    }
}

#[test]
fn a_deadlock_is_found_and_named() {
    let ends: Vec<Option<String>> = (0..100)
        .map(|seed| {
            simulate(seed, || {
                let (a, b) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(())));
                let (a2, b2) = (a.clone(), b.clone());
                let other = thread::spawn(move || {
                    let _b = b2.lock();
                    let _a = a2.lock();
                });
                let held = a.lock();
                drop((b.lock(), held));
                other.join().unwrap();
            })
            .failure
        })
        .collect();
    assert!(ends.iter().flatten().all(|failure| failure.starts_with("deadlock: ") && failure.contains("Lock at")));
    assert!(ends.iter().any(Option::is_some) && ends.iter().any(Option::is_none));
}

#[test]
fn time_passes_when_nobody_can_run_and_timeouts_fire() {
    let outcome = simulate(1, || {
        let began = Instant::now();
        let (_sender, receiver) = channel::bounded::<()>(1);
        assert!(receiver.recv_timeout(Duration::from_secs(3600)).is_err());
        assert!(began.elapsed() >= Duration::from_secs(3600));
        let (mutex, condition) = (Mutex::new(()), Condvar::new());
        assert!(condition.wait_for(&mut mutex.lock(), Duration::from_secs(60)).timed_out());
        thread::park_timeout(Duration::from_secs(60));
    });
    assert_eq!(outcome.failure, None);
    assert!(outcome.time >= Duration::from_secs(3720));
}

#[test]
fn channels_are_bounded_in_order_and_disconnect() {
    for seed in 0..100 {
        let outcome = simulate(seed, || {
            let (sender, receiver) = channel::bounded(3);
            let sent = thread::spawn(move || (0..50).for_each(|n| sender.send(n).unwrap()));
            assert_eq!(receiver.iter().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
            sent.join().unwrap();
            let (sender, receiver) = channel::bounded(0);
            let hand = thread::spawn(move || receiver.recv().unwrap());
            sender.send(7).unwrap();
            assert_eq!(hand.join().unwrap(), 7);
            assert!(sender.send(8).is_err());
        });
        assert_eq!(outcome.failure, None, "seed {seed}");
    }
}

#[test]
fn a_killed_process_does_nothing_any_more() {
    for seed in 0..50 {
        let outcome = simulate(seed, || {
            let world = super::world::current();
            let process = world.new_process("victim");
            let count = Arc::new(Mutex::new(0));
            let counted = count.clone();
            world.start_process(process, move || {
                loop {
                    *counted.lock() += 1;
                    thread::sleep(Duration::from_millis(1));
                }
            });
            thread::sleep(Duration::from_millis(10));
            world.kill(process);
            assert!(!world.is_alive(process));
        });
        assert_eq!(outcome.failure, None, "seed {seed}");
    }
}
