//! `crossbeam-channel` in a simulated world.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use crossbeam_channel::{
    ReadyTimeoutError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};

use super::time::Instant;
use super::world::{self, Key, What};

struct Channel<T> {
    key: Key,
    state: Mutex<State<T>>,
}

struct State<T> {
    queue: VecDeque<T>,
    /// `None`: no bound.
    capacity: Option<usize>,
    senders: usize,
    receivers: usize,
    /// How many receivers wait for a channel without room (capacity 0).
    waiting: usize,
}

impl<T> Channel<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn has_room(&self) -> bool {
        match self.capacity {
            None => true,
            Some(0) => self.waiting > self.queue.len(),
            Some(capacity) => self.queue.len() < capacity,
        }
    }

    fn take(&mut self) -> Result<T, TryRecvError> {
        match self.queue.pop_front() {
            Some(value) => Ok(value),
            None if self.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }
}

fn new<T>(capacity: Option<usize>, senders: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), capacity, senders, receivers: 1, waiting: 0 };
    let channel = Arc::new(Channel { key: world::current().new_key(), state: Mutex::new(state) });
    (Sender(channel.clone()), Receiver(channel))
}

#[must_use]
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    new(Some(capacity), 1)
}

#[must_use]
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    new(None, 1)
}

/// Never gets anything, and is never disconnected.
#[must_use]
pub fn never<T>() -> Receiver<T> {
    let (sender, receiver) = new(None, 2);
    drop(sender);
    receiver
}

pub struct Sender<T>(Arc<Channel<T>>);

pub struct Receiver<T>(Arc<Channel<T>>);

impl<T> Sender<T> {
    /// # Errors
    ///
    /// Full, or nobody receives.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        world::step();
        let mut state = self.0.lock();
        if state.receivers == 0 {
            return Err(TrySendError::Disconnected(value));
        }
        if !state.has_room() {
            return Err(TrySendError::Full(value));
        }
        state.queue.push_back(value);
        drop(state);
        world::wake(self.0.key);
        Ok(())
    }

    /// # Errors
    ///
    /// Nobody receives.
    #[track_caller]
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_until(value, None).map_err(|error| SendError(error.into_inner()))
    }

    /// # Errors
    ///
    /// Full for as long, or nobody receives.
    #[track_caller]
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_until(value, world::current().now().checked_add(timeout))
    }

    #[track_caller]
    fn send_until(&self, value: T, deadline: Option<Duration>) -> Result<(), SendTimeoutError<T>> {
        let mut value = Some(value);
        let sent = world::wait(What::Channel, &[self.0.key], deadline, || {
            let mut state = self.0.lock();
            if state.receivers == 0 {
                return Some(false);
            }
            if !state.has_room() {
                return None;
            }
            state.queue.push_back(value.take().expect("sent once"));
            drop(state);
            world::wake(self.0.key);
            Some(true)
        });
        match (sent, value) {
            (Some(true), _) => Ok(()),
            (Some(false), Some(value)) => Err(SendTimeoutError::Disconnected(value)),
            (_, value) => Err(SendTimeoutError::Timeout(value.expect("not sent"))),
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().queue.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.0.lock().has_room()
    }
}

impl<T> Receiver<T> {
    /// # Errors
    ///
    /// Empty, or nobody sends.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        world::step();
        let taken = self.0.lock().take();
        if taken.is_ok() {
            world::wake(self.0.key);
        }
        taken
    }

    /// # Errors
    ///
    /// Nobody sends.
    #[track_caller]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_until(None).map_err(|_| RecvError)
    }

    /// # Errors
    ///
    /// Nothing came for as long, or nobody sends.
    #[track_caller]
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.recv_until(world::current().now().checked_add(timeout))
    }

    /// # Errors
    ///
    /// Nothing came until then, or nobody sends.
    #[track_caller]
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.recv_until(Some(deadline.since_start()))
    }

    #[track_caller]
    fn recv_until(&self, deadline: Option<Duration>) -> Result<T, RecvTimeoutError> {
        self.0.lock().waiting += 1;
        world::wake(self.0.key);
        let received = world::wait(What::Channel, &[self.0.key], deadline, || match self.0.lock().take() {
            Ok(value) => Some(Ok(value)),
            Err(TryRecvError::Disconnected) => Some(Err(RecvTimeoutError::Disconnected)),
            Err(TryRecvError::Empty) => None,
        });
        self.0.lock().waiting -= 1;
        world::wake(self.0.key);
        received.unwrap_or(Err(RecvTimeoutError::Timeout))
    }

    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().queue.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_ready(&self) -> bool {
        let state = self.0.lock();
        !state.queue.is_empty() || state.senders == 0
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Box<dyn Iterator<Item = T> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.lock().receivers += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        if world::is_inside() {
            world::wake(self.0.key);
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.lock();
            state.receivers -= 1;
            if state.receivers == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() }
        };
        // What was never received is dropped without the lock: it may hold ends of channels itself.
        drop(left);
        if world::is_inside() {
            world::wake(self.0.key);
        }
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender { .. }")
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver { .. }")
    }
}

/// Waits for several channels: only to be received from.
#[derive(Default)]
pub struct Select<'a> {
    operations: Vec<(Key, Box<dyn Fn() -> bool + 'a>)>,
}

impl<'a> Select<'a> {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn recv<T>(&mut self, receiver: &'a Receiver<T>) -> usize {
        self.operations.push((receiver.0.key, Box::new(|| receiver.is_ready())));
        self.operations.len() - 1
    }

    /// Waits until one of them is ready, and returns which; the seed chooses among several.
    #[track_caller]
    pub fn ready(&mut self) -> usize {
        self.ready_until(None).expect("there is no deadline")
    }

    /// # Errors
    ///
    /// None was ready for as long.
    #[track_caller]
    pub fn ready_timeout(&mut self, timeout: Duration) -> Result<usize, ReadyTimeoutError> {
        self.ready_until(world::current().now().checked_add(timeout)).ok_or(ReadyTimeoutError)
    }

    /// # Errors
    ///
    /// None was ready until then.
    #[track_caller]
    pub fn ready_deadline(&mut self, deadline: Instant) -> Result<usize, ReadyTimeoutError> {
        self.ready_until(Some(deadline.since_start())).ok_or(ReadyTimeoutError)
    }

    #[track_caller]
    fn ready_until(&mut self, deadline: Option<Duration>) -> Option<usize> {
        let keys: Vec<Key> = self.operations.iter().map(|(key, _)| *key).collect();
        world::wait(What::Channel, &keys, deadline, || {
            let ready: Vec<usize> =
                self.operations.iter().enumerate().filter(|(_, (_, ready))| ready()).map(|(at, _)| at).collect();
            (!ready.is_empty()).then(|| ready[world::current().chance(|rng| rng.usize(..ready.len()))])
        })
    }
}
