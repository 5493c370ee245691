//! What is active where the node leads, and nowhere else.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use crate::coordinator::{Leadership, Stop};
use crate::datadir::DirLock;
use crate::leader::Leader;
use crate::sys::time::Instant;

/// Why a [`Host`] does not go on; its text says cause and remedy.
pub type HostError = Box<dyn StdError + Send + Sync>;

/// What is active where the node leads: a program that is started and stopped, or the process that embeds the node.
///
/// All methods are called by the node's own thread, one after the other: [`prepare`](Self::prepare), [`start`](Self::start),
/// [`check`](Self::check) again and again, [`stop`](Self::stop). `stop` follows whatever came before, also if that failed.
pub trait Host: Send + 'static {
    /// Whether it begins to watch the leader's directory in [`prepare`](Self::prepare): the leader is opened for that, as with
    /// [`Opening::will_be_watched`](crate::leader::Opening::will_be_watched). Defaults to no. Never blocks.
    fn will_watch(&self) -> bool {
        false
    }

    /// Elected; the leader is open, and whoever connects to it waits until this returns.
    ///
    /// # Errors
    ///
    /// Leadership is handed over.
    fn prepare(&mut self, term: &Term) -> Result<(), HostError> {
        let _ = term;
        Ok(())
    }

    /// Becomes active: from now on it may change the directory. May block for as long as that takes.
    ///
    /// # Errors
    ///
    /// Leadership is handed over.
    fn start(&mut self, term: &Term) -> Result<(), HostError>;

    /// Called several times a second while the node leads; should return soon.
    ///
    /// # Errors
    ///
    /// Leadership is handed over.
    fn check(&mut self, term: &Term) -> Result<(), HostError> {
        let _ = term;
        Ok(())
    }

    /// Whether it has shown that it will stay active. Asked after [`start`](Self::start) and each [`check`](Self::check); until it is so
    /// for the first time, or something was to be committed on all, the recorded in-sync set is left as the election found it,
    /// and whoever was in it may lead should this host fail. Defaults to yes. Never blocks.
    fn is_up(&self, term: &Term) -> bool {
        let _ = term;
        true
    }

    /// How long [`stop`](Self::stop) may take in which it is still active although leadership was lost, if that can be told. A node is
    /// not started where another one would be elected by then. Defaults to no time: what is active ends by itself with
    /// [`Term::held_until`], or cannot do harm.
    fn stop_max(&self) -> Duration {
        Duration::ZERO
    }

    /// Ceases to be active; returns when nothing of it changes the directory any more, and every clone of
    /// [`Term::leader`] is dropped. When leadership was lost, the leader has been shut down by then and others may lead already;
    /// when it is handed over, it is held until this returns, and what is announced here still reaches followers, unless
    /// this host never [was up](Self::is_up).
    ///
    /// # Errors
    ///
    /// It is still active, as far as is known. Called again after a while: the node does not follow before.
    fn stop(&mut self, term: &Term) -> Result<(), HostError>;
}

/// The time for which a node leads.
pub struct Term {
    pub(super) leader: Arc<Leader>,
    pub(super) leadership: Arc<dyn Leadership>,
    pub(super) lock: DirLock,
    pub(super) stop: Stop,
    /// For leaderships that need no renewal.
    pub(super) far: Instant,
}

impl Term {
    pub(super) fn new(leader: Arc<Leader>, leadership: Arc<dyn Leadership>, lock: DirLock, stop: Stop) -> Self {
        const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
        Self { leader, leadership, lock, stop, far: Instant::now() + FAR }
    }

    /// The leader of the node's directory.
    #[must_use]
    pub fn leader(&self) -> &Arc<Leader> {
        &self.leader
    }

    /// Whether the node leads, by its own clock. Never blocks.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.leadership.is_held()
    }

    /// Until when the node leads unless that is extended meanwhile, as it is as long as all is well.
    #[must_use]
    pub fn held_until(&self) -> Instant {
        if !self.is_held() {
            return Instant::now();
        }
        self.leadership.held_until().unwrap_or(self.far)
    }

    /// Why starting should not go on, if it should not.
    pub(super) fn over(&self) -> Option<&'static str> {
        if !self.is_held() { Some("leadership was lost") } else { self.stop.is_set().then_some("the node shuts down") }
    }
}
