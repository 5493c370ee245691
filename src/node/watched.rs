//! A host for programs that know nothing of replication: the directory is watched, hooks are called, a program is run.
//!
//! No threads of its own but the watcher's and the program's. It stops in this order: the program, until all of it is reaped;
//! the hook `on_lost`, until it ends with exit code 0; the watcher, which announces what is left.

use std::time::Duration;

use super::hook::Hook;
use super::host::{Host, HostError, Term};
use super::program::{Program, ProgramConfig};
use crate::leader::Window;
use crate::sys::time::Instant;
use crate::watch::Watcher;

/// How often a program that is being stopped has its permit renewed.
const TICK: Duration = Duration::from_millis(100);
/// Delays before a program that ended is started again: they double, unless it ran for as long as the longest.
const RESTART_MIN: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(30);

/// What cannot run here (not installed, a setting that is wrong) has mostly ended by then.
const UP_AFTER: Duration = Duration::from_secs(1);

/// What is to be done when the program ends by itself while its node leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnExit {
    /// Leadership is handed over: to a node where the program has a better chance.
    #[default]
    HandOver,
    /// It is started again, with growing delays.
    Restart,
}

/// Settings of a [`WatchedProgram`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WatchedConfig {
    /// Run by `sh -c` when the node was elected, before the program is started. An exit code other than 0 hands leadership
    /// over. Defaults to none.
    pub on_elected: Option<String>,
    /// Run by `sh -c` when the node leads no more, after the program has ended. Until it ends with exit code 0 the node does not
    /// follow, and it is run again: what it is to stop may still write. Defaults to none.
    pub on_lost: Option<String>,
    /// How long a hook may run before it is killed. Defaults to 60 s. With `on_lost`, leadership must be given up so long before
    /// another node can be elected: see [`stop_margin`](Self::stop_margin).
    pub hook_timeout: Duration,
    /// How many files a hook may have open before it raises that itself (its soft limit), if it is not to have this process' own.
    /// Defaults to none.
    pub descriptors: Option<u64>,
    /// The managed program. Defaults to none.
    pub program: Option<ProgramConfig>,
    /// What happens when it ends by itself. Defaults to [`OnExit::HandOver`].
    pub on_exit: OnExit,
}

impl Default for WatchedConfig {
    fn default() -> Self {
        Self {
            on_elected: None,
            on_lost: None,
            hook_timeout: Duration::from_secs(60),
            descriptors: None,
            program: None,
            on_exit: OnExit::default(),
        }
    }
}

impl WatchedConfig {
    /// How long before another node may be elected a leadership must have ended here, so that what the hook `on_lost` is to
    /// stop has ended by then; zero without that hook.
    #[must_use]
    pub fn stop_margin(&self) -> Duration {
        self.on_lost.as_ref().map_or(Duration::ZERO, |_| self.hook_timeout.saturating_add(BEFORE_HOOK_MAX))
    }
}

/// What comes before the hook when leadership is lost: followers are let go, and what is left of the program, which was killed in that
/// moment, is reaped.
const BEFORE_HOOK_MAX: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct WatchedProgram {
    config: WatchedConfig,
    watcher: Option<Watcher>,
    program: Option<Running>,
    /// Something was started that the hook is to stop.
    lost_due: bool,
    restart_delay: Duration,
    restart_at: Option<Instant>,
}

struct Running {
    program: Program,
    since: Instant,
    /// Its end was seen, and logged.
    ended: bool,
}

impl WatchedProgram {
    /// One that is not active yet.
    #[must_use]
    pub fn new(config: WatchedConfig) -> Self {
        Self { config, watcher: None, program: None, lost_due: false, restart_delay: RESTART_MIN, restart_at: None }
    }

    /// Until all is watched: what the program writes before that would be found late. Followers get what there is meanwhile.
    fn wait_for_watcher(&self, term: &Term) -> Result<(), HostError> {
        let Some(watcher) = &self.watcher else { return Ok(()) };
        while !watcher.wait(TICK) {
            if let Some(failure) = watcher.take_failure() {
                return Err(failure.into());
            }
            if let Some(why) = term.over() {
                return Err(why.into());
            }
        }
        Ok(())
    }

    fn hook(&self, command: Option<&String>) -> Option<Hook> {
        let (timeout, descriptors) = (self.config.hook_timeout, self.config.descriptors);
        command.map(|command| Hook { command: command.clone(), timeout, descriptors })
    }

    fn start_program(&mut self, term: &Term) -> Result<(), HostError> {
        let Some(config) = &self.config.program else { return Ok(()) };
        let program = Program::start(config, &term.lock, term.held_until())?;
        log::info!("started the program: {}", config.command);
        self.program = Some(Running { program, since: Instant::now(), ended: false });
        self.restart_at = None;
        Ok(())
    }

    /// Sees to a program that ended by itself.
    fn check_program(&mut self, term: &Term) -> Result<(), HostError> {
        if self.restart_at.is_some_and(|at| Instant::now() >= at) {
            return self.start_program(term);
        }
        let Some(running) = &mut self.program else { return Ok(()) };
        running.program.permit(term.held_until());
        let Some(how) = running.program.ended() else { return Ok(()) };
        let how = format!("the program ended by itself, after {:.1?}: {how}", running.since.elapsed());
        if self.config.on_exit == OnExit::HandOver {
            return Err(how.into());
        }
        if !running.ended {
            running.ended = true;
            self.restart_delay = match running.since.elapsed() > RESTART_MAX {
                true => RESTART_MIN,
                false => (self.restart_delay * 2).min(RESTART_MAX),
            };
            log::error!("{how}; starts it again in {:?}", self.restart_delay);
        }
        // What it left behind is ended by then.
        if running.program.wait(Duration::ZERO) {
            self.program = None;
            self.restart_at = Some(Instant::now() + self.restart_delay);
        }
        Ok(())
    }

    /// Returns when all of it is reaped, however long that takes. It may go on for as long as leadership is held.
    fn stop_program(&mut self, term: &Term) {
        self.restart_at = None;
        let Some(mut running) = self.program.take() else { return };
        running.program.stop();
        let mut said = Instant::now();
        while !running.program.wait(TICK) {
            running.program.permit(term.held_until());
            if said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                log::warn!("the program has not ended yet");
            }
        }
        let how = running.program.ended().unwrap_or_default().to_owned();
        if !running.ended {
            log::info!("the program ended: {how}");
        }
    }
}

impl Host for WatchedProgram {
    fn will_watch(&self) -> bool {
        true
    }

    fn prepare(&mut self, term: &Term) -> Result<(), HostError> {
        let leader = term.leader();
        // Half of the queue: the watcher pauses before a follower that keeps up is anywhere near eviction.
        let window = Window::new(leader.queue_bytes() / 2);
        self.watcher = Some(Watcher::begin(leader.clone(), leader.data_dir(), Some(window))?);
        Ok(())
    }

    fn start(&mut self, term: &Term) -> Result<(), HostError> {
        self.wait_for_watcher(term)?;
        self.lost_due = true;
        self.restart_delay = RESTART_MIN;
        if let Some(hook) = self.hook(self.config.on_elected.as_ref()) {
            log::info!("runs the hook {hook}");
            hook.run(&|| term.over()).map_err(|error| format!("the hook {hook} {error}"))?;
        }
        self.start_program(term)
    }

    fn check(&mut self, term: &Term) -> Result<(), HostError> {
        if let Some(failure) = self.watcher.as_ref().and_then(Watcher::take_failure) {
            return Err(failure.into());
        }
        self.check_program(term)
    }

    fn is_up(&self, _: &Term) -> bool {
        // One that is started again and again does not hand over.
        self.config.on_exit == OnExit::Restart
            || self.program.as_ref().is_none_or(|running| running.since.elapsed() >= UP_AFTER)
    }

    fn stop_max(&self) -> Duration {
        self.config.stop_margin()
    }

    fn stop(&mut self, term: &Term) -> Result<(), HostError> {
        self.stop_program(term);
        if self.lost_due
            && let Some(hook) = self.hook(self.config.on_lost.as_ref())
        {
            log::info!("runs the hook {hook}");
            hook.run(&|| None).map_err(|error| format!("the hook {hook} {error}"))?;
        }
        self.lost_due = false;
        if self.watcher.take().is_some_and(|watcher| !watcher.stop()) {
            log::warn!("not all that the program wrote could be read and sent: no other node has the rest");
        }
        Ok(())
    }
}
