//! The door at which followers wait while their leader reads its directory.
//!
//! One lock, a leaf.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::sys::sync::{Condvar, Mutex};

/// What followers wait at while the leader reads its directory.
#[derive(Default)]
pub(in crate::leader) struct Door {
    state: Mutex<State>,
    changed: Condvar,
    /// Found so far.
    pub(in crate::leader) files: AtomicU64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open,
    GivenUp,
}

impl Door {
    pub(in crate::leader) fn open(&self) {
        self.set(State::Open);
    }

    /// Unless it is open: it never will be.
    pub(in crate::leader) fn give_up(&self) {
        self.set(State::GivenUp);
    }

    /// The first word counts.
    fn set(&self, new: State) {
        {
            let mut state = self.state.lock();
            if *state == State::Closed {
                *state = new;
            }
        }
        self.changed.notify_all();
    }

    pub(in crate::leader) fn is_open(&self) -> bool {
        *self.state.lock() == State::Open
    }

    /// Waits while it is closed, at most for `timeout`; returns whether it was opened then, or given up.
    pub(in crate::leader) fn wait(&self, timeout: Duration) -> Option<bool> {
        let mut state = self.state.lock();
        if *state == State::Closed {
            self.changed.wait_for(&mut state, timeout);
        }
        match *state {
            State::Closed => None,
            State::Open => Some(true),
            State::GivenUp => Some(false),
        }
    }
}
