//! `parking_lot`'s locks in a simulated world: the seed says who gets one.
//!
//! A real lock holds the value, so that no unsafe code is needed; it is never contended.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::Duration;

use super::time::Instant;
use super::world::{self, Key, What};

#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    lock: Named,
    value: parking_lot::Mutex<T>,
}

/// Its key, made when it is first used: locks are made outside of worlds, too.
#[derive(Default)]
struct Named(std::sync::OnceLock<Key>);

impl Named {
    fn key(&self) -> Key {
        *self.0.get_or_init(|| world::current().new_key())
    }
}

pub struct MutexGuard<'a, T: ?Sized> {
    lock: &'a Mutex<T>,
    /// `None` only while the lock is given up in a wait, and when it was dropped.
    value: Option<parking_lot::MutexGuard<'a, T>>,
    taken: &'static Location<'static>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self { lock: Named(std::sync::OnceLock::new()), value: parking_lot::Mutex::new(value) }
    }

    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let value = Some(self.acquire(Location::caller()));
        MutexGuard { lock: self, value, taken: Location::caller() }
    }

    #[track_caller]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        world::step();
        let value = self.value.try_lock()?;
        world::lock_taken(self.lock.key(), Location::caller());
        Some(MutexGuard { lock: self, value: Some(value), taken: Location::caller() })
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[track_caller]
    fn acquire(&self, at: &'static Location<'static>) -> parking_lot::MutexGuard<'_, T> {
        let key = self.lock.key();
        let value = world::wait(What::Lock, &[key], None, || self.value.try_lock()).expect("there is no deadline");
        world::lock_taken(key, at);
        value
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: ?Sized> MutexGuard<'_, T> {
    #[track_caller]
    pub fn unlocked<R>(guard: &mut Self, run: impl FnOnce() -> R) -> R {
        guard.release();
        let result = run();
        guard.value = Some(guard.lock.acquire(guard.taken));
        result
    }

    fn release(&mut self) {
        self.value = None;
        world::lock_released(self.lock.lock.key());
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("the lock is held")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("the lock is held")
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.value.is_some() {
            self.release();
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[derive(Default)]
pub struct Condvar {
    name: Named,
    waiters: parking_lot::Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    next: u64,
    /// Who waits, and whether it was notified.
    waiting: Vec<(u64, bool)>,
}

impl Waiters {
    fn take(&mut self, ticket: u64, only_notified: bool) -> Option<()> {
        let found = self.waiting.iter().position(|(of, notified)| *of == ticket && (*notified || !only_notified))?;
        self.waiting.remove(found);
        Some(())
    }
}

pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub const fn new() -> Self {
        let waiters = parking_lot::Mutex::new(Waiters { next: 0, waiting: Vec::new() });
        Self { name: Named(std::sync::OnceLock::new()), waiters }
    }

    #[track_caller]
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_for_notice(guard, None);
    }

    #[track_caller]
    pub fn wait_while<T>(&self, guard: &mut MutexGuard<'_, T>, mut condition: impl FnMut(&mut T) -> bool) {
        while condition(guard) {
            self.wait(guard);
        }
    }

    #[track_caller]
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
        let deadline = world::current().now().checked_add(timeout);
        self.wait_for_notice(guard, deadline)
    }

    #[track_caller]
    pub fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> WaitTimeoutResult {
        self.wait_for_notice(guard, Some(deadline.since_start()))
    }

    #[track_caller]
    pub fn wait_while_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        while condition(guard) {
            if self.wait_until(guard, deadline).timed_out() {
                return WaitTimeoutResult(condition(guard));
            }
        }
        WaitTimeoutResult(false)
    }

    #[track_caller]
    pub fn wait_while_for<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        condition: impl FnMut(&mut T) -> bool,
        timeout: Duration,
    ) -> WaitTimeoutResult {
        self.wait_while_until(guard, condition, Instant::now() + timeout)
    }

    #[track_caller]
    fn wait_for_notice<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Option<Duration>,
    ) -> WaitTimeoutResult {
        let ticket = {
            let mut waiters = self.waiters.lock();
            waiters.next += 1;
            let ticket = waiters.next;
            waiters.waiting.push((ticket, false));
            ticket
        };
        guard.release();
        let notified = || self.waiters.lock().take(ticket, true);
        let timed_out = world::wait(What::Condition, &[self.name.key()], deadline, notified).is_none();
        if timed_out {
            self.waiters.lock().take(ticket, false);
        }
        guard.value = Some(guard.lock.acquire(guard.taken));
        WaitTimeoutResult(timed_out)
    }

    pub fn notify_one(&self) -> bool {
        world::step();
        let mut waiters = self.waiters.lock();
        let still: Vec<usize> = (0..waiters.waiting.len()).filter(|at| !waiters.waiting[*at].1).collect();
        if still.is_empty() {
            return false;
        }
        let chosen = still[world::current().chance(|rng| rng.usize(..still.len()))];
        waiters.waiting[chosen].1 = true;
        drop(waiters);
        world::wake(self.name.key());
        true
    }

    pub fn notify_all(&self) -> usize {
        world::step();
        let mut waiters = self.waiters.lock();
        let mut woken = 0;
        for (_, notified) in &mut waiters.waiting {
            woken += usize::from(!std::mem::replace(notified, true));
        }
        drop(waiters);
        world::wake(self.name.key());
        woken
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

/// As [`std::sync::OnceLock`]: who comes while it is being made waits in the world.
#[derive(Debug)]
pub struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    making: Mutex<()>,
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> OnceLock<T> {
    pub const fn new() -> Self {
        Self { value: std::sync::OnceLock::new(), making: Mutex::new(()) }
    }

    pub fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// # Errors
    ///
    /// It was set before.
    pub fn set(&self, value: T) -> Result<(), T> {
        let _one_at_a_time = self.making.lock();
        self.value.set(value)
    }

    #[track_caller]
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.value.get() {
            return value;
        }
        let _one_at_a_time = self.making.lock();
        self.value.get_or_init(make)
    }
}
