//! The scheduler: real threads that hand one token around, virtual time, and processes that die at any step.
//!
//! Whoever holds the token runs; all others are parked. Each call that could block or that others could see is a scheduling point
//! ([`step`]), at which the seed says who goes on. A thread that has to wait ([`wait`]) names what it waits for by keys, and is
//! looked at again when somebody calls [`wake`] with one of them, or when its deadline has come. When nobody can run, time jumps to the
//! next deadline; when there is none either, the history fails as a deadlock.
//!
//! Since one thread runs at a time, whatever happens between two scheduling points is atomic: the locks in here and in the other
//! parts of the world are never contended, and are never held at a scheduling point.
//!
//! A process that is killed is never scheduled again: no destructor of it runs, as with a real one. Its threads stay parked until the
//! operating system's process that runs the simulation ends, which therefore runs a bounded number of histories.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::disk::Disks;
use super::net::Network;

/// Stacks are small: thousands of threads of killed processes stay around.
const STACK_BYTES: usize = 512 << 10;
/// A history that takes more steps is given up as one that never comes to rest.
const STEPS_MAX: u64 = 5_000_000;

/// A stall is shorter than this, doubled once or more often.
const STALL_MIN: Duration = Duration::from_micros(10);
const STALL_DOUBLES_MAX: u32 = 12;

/// What can be waited for: given once, never used again in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

/// A process of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub usize);

type TaskId = usize;

/// What a thread waits for: what the checks and the trace know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A mutex.
    Lock,
    /// A condition variable.
    Condition,
    /// A channel, or several of them.
    Channel,
    /// To be unparked.
    Park,
    /// Time.
    Sleep,
    /// A thread's end.
    Join,
    /// A socket: to connect, accept, read or write.
    Socket,
    /// A disk that takes its time.
    Disk,
}

/// How the seed chooses who runs next.
#[derive(Clone, Debug)]
pub enum Policy {
    /// Goes on with who runs, and with this probability changes to anybody at a scheduling point.
    Random { change: f64 },
    /// Each thread has a priority; at so many points, at random within so many steps, the one that runs becomes the last of all
    /// (probabilistic concurrency testing).
    Priorities { changes: usize, within: u64 },
}

/// What a world is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    pub seed: u64,
    pub policy: Policy,
    /// How likely a thread is held up at a scheduling point, for up to some 40 ms, as one is that the system runs others instead of.
    /// Without it, whoever can run does so before time jumps: no thread is ever slower than an answer over the network.
    pub stalls: f64,
    /// Keeps a readable trace.
    pub trace: bool,
}

/// How a history ended.
#[derive(Debug)]
pub struct Outcome {
    /// What was found wrong; `None`: nothing.
    pub failure: Option<String>,
    pub trace: Vec<String>,
    /// The same for two runs that took the same steps.
    pub digest: u64,
    pub steps: u64,
    /// Virtual time that passed.
    pub time: Duration,
}

/// A world: held by each of its threads.
pub struct World {
    state: Mutex<State>,
    /// Virtual time in ns, also in `state`: it is asked for often.
    clock: AtomicU64,
    keys: AtomicU64,
    ended: AtomicBool,
    main: std::thread::Thread,
    tracing: bool,
    pub(super) disks: Disks,
    pub(super) network: Network,
}

struct State {
    tasks: Vec<Task>,
    processes: Vec<Process>,
    /// Who can run, in no order that means anything; each task knows its place.
    runnable: Vec<TaskId>,
    /// Who waits for what, and until when.
    waiting: BTreeSet<(Key, TaskId)>,
    deadlines: BTreeSet<(Duration, TaskId)>,
    running: TaskId,
    now: Duration,
    steps: u64,
    digest: u64,
    policy: Policy,
    stalls: f64,
    /// For [`Policy::Priorities`]: the steps at which the one that runs becomes the last.
    change_at: Vec<u64>,
    lowest: i64,
    schedule: fastrand::Rng,
    chance: fastrand::Rng,
    failure: Option<String>,
    panicked: Option<String>,
    trace: Vec<String>,
}

struct Process {
    name: String,
    tasks: Vec<TaskId>,
    alive: bool,
    frozen: bool,
    /// Its own randomness, so that what one process draws does not change what another draws.
    chance: fastrand::Rng,
    faults: Vec<Fault>,
}

/// System calls that fail.
#[derive(Clone, Debug)]
pub struct Fault {
    /// As the system calls it: `openat`, `pwrite`, `fdatasync`, `clone`, `accept` ...
    pub call: &'static str,
    pub errno: i32,
    /// Of each call.
    pub probability: f64,
    /// How often at most.
    pub left: u32,
}

struct Task {
    name: String,
    process: ProcessId,
    baton: Arc<Baton>,
    state: TaskState,
    /// Where in `runnable` it is.
    place: Option<usize>,
    priority: i64,
    /// What [`watch_waits`] was called with, and the waits since.
    watched: Option<Vec<Waited>>,
    /// Set by [`unpark`].
    token: bool,
    park: Key,
    end: Key,
}

/// A wait of a thread whose waits are watched.
#[derive(Clone, Debug)]
pub struct Waited {
    pub what: What,
    pub at: &'static Location<'static>,
}

#[derive(Debug)]
enum TaskState {
    Runnable,
    Waiting { what: What, keys: Vec<Key>, deadline: Option<Duration>, at: &'static Location<'static> },
    Ended,
}

/// Tells one thread that it has the token.
#[derive(Default)]
struct Baton {
    thread: OnceLock<std::thread::Thread>,
    given: AtomicBool,
}

impl Baton {
    fn give(&self) {
        self.given.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn take(&self) {
        while !self.given.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<(Arc<World>, TaskId)>> = const { RefCell::new(None) };
    /// Locks this thread holds: their keys and where they were taken.
    static HELD: RefCell<Vec<(Key, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// Runs `root` as the only thread of the process `driver` of a new world, and returns when it has ended or something was found wrong.
///
/// Threads that are left then stay parked for ever.
pub fn run(settings: Settings, root: impl FnOnce() + Send + 'static) -> Outcome {
    let mut schedule = fastrand::Rng::with_seed(settings.seed);
    let chance = schedule.fork();
    let change_at = match settings.policy {
        Policy::Random { .. } => Vec::new(),
        Policy::Priorities { changes, within } => (0..changes).map(|_| schedule.u64(..within.max(1))).collect(),
    };
    let world = Arc::new(World {
        state: Mutex::new(State {
            tasks: Vec::new(),
            processes: Vec::new(),
            runnable: Vec::new(),
            waiting: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            running: 0,
            now: Duration::ZERO,
            steps: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            policy: settings.policy,
            stalls: settings.stalls,
            change_at,
            lowest: 0,
            schedule,
            chance,
            failure: None,
            panicked: None,
            trace: Vec::new(),
        }),
        clock: AtomicU64::new(0),
        keys: AtomicU64::new(1),
        ended: AtomicBool::new(false),
        main: std::thread::current(),
        tracing: settings.trace,
        disks: Disks::default(),
        network: Network::new(settings.seed, settings.trace),
    });
    let driver = world.new_process("driver");
    let of_root = world.clone();
    let first = world.start(driver, "driver".into(), move || {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(root));
        if done.is_err() {
            of_root.fail("the driver panicked".to_owned());
        }
        of_root.end();
    });
    match first {
        Ok((task, _)) => world.lock().tasks[task].baton.give(),
        Err(error) => world.fail_now(format!("no thread is to be had: {error}")),
    }
    while !world.ended.load(Ordering::Acquire) {
        std::thread::park();
    }
    let mut state = world.lock();
    Outcome {
        failure: state.failure.take().or(state.panicked.take()),
        trace: std::mem::take(&mut state.trace),
        digest: state.digest,
        steps: state.steps,
        time: state.now,
    }
}

/// The world of this thread.
///
/// # Panics
///
/// Outside of one.
pub fn current() -> Arc<World> {
    with_current(|world, _| world.clone())
}

fn with_current<R>(use_it: impl FnOnce(&Arc<World>, TaskId) -> R) -> R {
    CURRENT.with_borrow(|current| {
        let (world, task) = current.as_ref().expect("this runs in a simulated world only");
        use_it(world, *task)
    })
}

/// Whether this thread is one of a simulated world.
pub fn is_inside() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// A scheduling point.
pub fn step() {
    with_current(|world, me| world.reschedule(me));
}

/// What [`thread::yield_now`](super::thread::yield_now) is: others first.
pub(super) fn yield_now() {
    with_current(|world, me| {
        let mut state = world.lock();
        state.lowest -= 1;
        state.tasks[me].priority = state.lowest;
        drop(state);
        world.reschedule(me);
    });
}

/// Waits until `ready` returns something, and returns it; `None` when the deadline (on the world's clock) has come before.
///
/// A scheduling point in any case. `ready` is called again after each [`wake`] with one of the keys.
#[track_caller]
pub fn wait<T>(
    what: What,
    keys: &[Key],
    deadline: Option<Duration>,
    mut ready: impl FnMut() -> Option<T>,
) -> Option<T> {
    let at = Location::caller();
    let (world, me) = with_current(|world, me| (world.clone(), me));
    world.reschedule(me);
    if what != What::Lock {
        world.check_held(what, at);
    }
    loop {
        if let Some(result) = ready() {
            return Some(result);
        }
        if deadline.is_some_and(|deadline| world.now() >= deadline) {
            return None;
        }
        world.suspend(me, what, keys, deadline, at);
    }
}

/// Lets all who wait for this look again. No scheduling point.
pub fn wake(key: Key) {
    with_current(|world, _| world.lock().wake(key));
}

/// What the checks are told when a thread may block while it holds locks: what it blocks on, where, and where each lock was taken.
/// `true` if that is allowed.
pub type MayBlock = fn(What, &'static Location<'static>, &[&'static Location<'static>]) -> bool;

static MAY_BLOCK: OnceLock<MayBlock> = OnceLock::new();

/// Has each blocking call that is made with a lock held judged; once for a program.
pub fn judge_blocking(judge: MayBlock) {
    let _ = MAY_BLOCK.set(judge);
}

/// From now on the waits of this thread are kept, until [`watched_waits`] takes them: those in which it was really suspended.
pub fn watch_waits() {
    with_current(|world, me| world.lock().tasks[me].watched = Some(Vec::new()));
}

/// The waits since [`watch_waits`], which ends with this.
pub fn watched_waits() -> Vec<Waited> {
    with_current(|world, me| world.lock().tasks[me].watched.take().unwrap_or_default())
}

/// Where each lock was taken that this thread holds.
pub fn held_locks() -> Vec<&'static Location<'static>> {
    HELD.with_borrow(|held| held.iter().map(|(_, at)| *at).collect())
}

pub(super) fn lock_taken(key: Key, at: &'static Location<'static>) {
    HELD.with_borrow_mut(|held| held.push((key, at)));
}

pub(super) fn lock_released(key: Key) {
    HELD.with_borrow_mut(|held| {
        if let Some(found) = held.iter().rposition(|(held, _)| *held == key) {
            held.remove(found);
        }
    });
    wake(key);
}

/// A thread of the world, as [`thread::JoinHandle`](super::thread::JoinHandle) knows it.
#[derive(Clone)]
pub(super) struct TaskHandle {
    pub(super) world: Arc<World>,
    pub(super) id: TaskId,
    pub(super) end: Key,
}

impl TaskHandle {
    pub(super) fn current() -> Self {
        with_current(|world, id| Self { world: world.clone(), id, end: world.lock().tasks[id].end })
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.world.lock().tasks[self.id].state, TaskState::Ended)
    }

    pub(super) fn unpark(&self) {
        step();
        let mut state = self.world.lock();
        state.tasks[self.id].token = true;
        let park = state.tasks[self.id].park;
        state.wake(park);
    }

    pub(super) fn name(&self) -> String {
        self.world.lock().tasks[self.id].name.clone()
    }

    /// Parks this thread, which must be the running one.
    #[track_caller]
    pub(super) fn park(&self, deadline: Option<Duration>) {
        let park = self.world.lock().tasks[self.id].park;
        let taken = || std::mem::take(&mut self.world.lock().tasks[self.id].token).then_some(());
        wait(What::Park, &[park], deadline, taken);
    }
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A key that nobody had before.
    pub fn new_key(&self) -> Key {
        Key(self.keys.fetch_add(1, Ordering::Relaxed))
    }

    /// Virtual time since the world began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.clock.load(Ordering::Relaxed))
    }

    /// The process that this thread is of.
    pub fn process(&self) -> ProcessId {
        with_current(|world, me| world.lock().tasks[me].process)
    }

    /// Draws for the world itself: faults, delays, the driver's choices.
    pub fn chance<R>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        draw(&mut self.lock().chance)
    }

    /// Draws for the process of this thread.
    pub fn chance_of_process<R>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        let process = self.process();
        draw(&mut self.lock().processes[process.0].chance)
    }

    /// The error that the world has in store for a system call of this thread's process.
    pub(super) fn may_fail(&self, call: &'static str) -> std::io::Result<()> {
        let process = self.process();
        let mut state = self.lock();
        let Process { faults, chance, .. } = &mut state.processes[process.0];
        let Some(fault) = faults.iter_mut().find(|fault| fault.call == call && fault.left > 0) else { return Ok(()) };
        if chance.f64() >= fault.probability {
            return Ok(());
        }
        fault.left -= 1;
        let error = std::io::Error::from_raw_os_error(fault.errno);
        drop(state);
        self.trace(|| format!("{call} fails: {error}"));
        Err(error)
    }

    /// From now on, system calls of a process fail. An empty list ends that.
    pub fn set_faults(&self, process: ProcessId, faults: Vec<Fault>) {
        self.trace(|| format!("{}: {faults:?}", self.lock_name(process)));
        self.lock().processes[process.0].faults = faults;
    }

    /// A thread panics, which nothing here ever should: the history fails when it ends, unless something else is found before.
    pub fn note_panic(&self, panic: String) {
        self.lock().panicked.get_or_insert(panic);
    }

    /// Adds a line to the trace, if one is kept.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if !self.tracing {
            return;
        }
        let line = line();
        let me = CURRENT.with_borrow(|current| current.as_ref().map(|(_, me)| *me));
        let mut state = self.lock();
        let who = me.map_or_else(String::new, |me| {
            let task = &state.tasks[me];
            format!("{}/{}", state.processes[task.process.0].name, task.name)
        });
        let text = format!("{:>13.6} {who:<28} {line}", state.now.as_secs_f64());
        state.trace.push(text);
    }

    /// Ends the history: this was found wrong. Returns only to threads that no longer matter.
    pub fn fail(&self, what: String) {
        self.trace(|| format!("FAILED: {what}"));
        let mut state = self.lock();
        state.failure.get_or_insert(what);
        drop(state);
        self.end();
        if is_inside() {
            park_for_ever();
        }
    }

    fn fail_now(&self, what: String) {
        self.lock().failure.get_or_insert(what);
        self.end();
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.main.unpark();
    }

    /// A process that has no threads yet.
    pub fn new_process(&self, name: &str) -> ProcessId {
        let mut state = self.lock();
        let chance = state.chance.fork();
        state.processes.push(Process {
            name: name.to_owned(),
            tasks: Vec::new(),
            alive: true,
            frozen: false,
            chance,
            faults: Vec::new(),
        });
        ProcessId(state.processes.len() - 1)
    }

    /// Starts a thread of a process, as its `main` would be.
    ///
    /// # Panics
    ///
    /// The operating system has no thread to give.
    pub fn start_process(self: &Arc<Self>, process: ProcessId, main: impl FnOnce() + Send + 'static) {
        self.start(process, "main".into(), main).expect("a thread for a process");
    }

    /// Whether it was not killed.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.lock().processes[process.0].alive
    }

    /// Ends a process at the step at which each of its threads is. If it is this thread's own, this never returns.
    pub fn kill(&self, process: ProcessId) {
        self.trace(|| format!("kills {}", self.lock_name(process)));
        {
            let mut state = self.lock();
            state.processes[process.0].alive = false;
            for task in std::mem::take(&mut state.processes[process.0].tasks) {
                state.ends(task);
            }
        }
        self.network.process_ended(self, process);
        self.disks.process_ended(process);
        if self.process() == process {
            with_current(|world, me| world.reschedule(me));
        }
    }

    fn lock_name(&self, process: ProcessId) -> String {
        self.lock().processes[process.0].name.clone()
    }

    /// Stops a process (`SIGSTOP`), or lets it go on.
    pub fn freeze(&self, process: ProcessId, frozen: bool) {
        self.trace(|| format!("{} {}", if frozen { "freezes" } else { "thaws" }, self.lock_name(process)));
        let mut state = self.lock();
        state.processes[process.0].frozen = frozen;
        for at in 0..state.processes[process.0].tasks.len() {
            let task = state.processes[process.0].tasks[at];
            if frozen { state.unlist(task) } else { state.list(task) }
        }
    }

    pub(super) fn start(
        self: &Arc<Self>,
        process: ProcessId,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<(TaskId, Key)> {
        let baton = Arc::new(Baton::default());
        let (park, end) = (self.new_key(), self.new_key());
        let id = {
            let mut state = self.lock();
            let priority = state.schedule.i64(1..i64::MAX);
            state.tasks.push(Task {
                name: name.clone(),
                process,
                baton: baton.clone(),
                state: TaskState::Runnable,
                place: None,
                priority,
                watched: None,
                token: false,
                park,
                end,
            });
            let id = state.tasks.len() - 1;
            state.processes[process.0].tasks.push(id);
            state.list(id);
            id
        };
        let (world, own) = (self.clone(), baton.clone());
        let spawned = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            own.take();
            CURRENT.set(Some((world.clone(), id)));
            // Who panicked is known by then; whoever waits for the thread is told as well.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            world.leave(id);
        });
        match spawned {
            Ok(handle) => {
                let _ = baton.thread.set(handle.thread().clone());
                // It may have been given the token before it could be told.
                handle.thread().unpark();
                Ok((id, end))
            }
            Err(error) => {
                self.lock().ends(id);
                Err(error)
            }
        }
    }

    /// The running thread ends.
    fn leave(&self, me: TaskId) {
        let mut state = self.lock();
        state.ends(me);
        let process = state.tasks[me].process;
        state.processes[process.0].tasks.retain(|task| *task != me);
        let end = state.tasks[me].end;
        state.wake(end);
        self.pass(state, me);
    }

    /// A scheduling point: somebody goes on, perhaps this thread.
    fn reschedule(&self, me: TaskId) {
        let mut state = self.lock();
        state.may_stall(me);
        if self.pass(state, me) {
            self.take_baton(me);
        }
    }

    fn suspend(
        &self,
        me: TaskId,
        what: What,
        keys: &[Key],
        deadline: Option<Duration>,
        at: &'static Location<'static>,
    ) {
        let mut state = self.lock();
        if let Some(watched) = &mut state.tasks[me].watched {
            watched.push(Waited { what, at });
        }
        state.waits(me, TaskState::Waiting { what, keys: keys.to_vec(), deadline, at });
        if self.pass(state, me) {
            self.take_baton(me);
        }
    }

    fn take_baton(&self, me: TaskId) {
        let baton = self.lock().tasks[me].baton.clone();
        baton.take();
    }

    /// Gives the token to whoever the seed says; `true` if that is somebody else.
    fn pass(&self, mut state: MutexGuard<'_, State>, me: TaskId) -> bool {
        if self.ended.load(Ordering::Acquire) {
            drop(state);
            park_for_ever();
        }
        let next = match state.next(me, &self.network) {
            Ok(next) => next,
            Err(failure) => {
                drop(state);
                self.trace(|| format!("FAILED: {failure}"));
                self.fail_now(failure);
                park_for_ever();
            }
        };
        state.running = next;
        self.clock.store(u64::try_from(state.now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if next == me {
            return false;
        }
        let baton = state.tasks[next].baton.clone();
        drop(state);
        baton.give();
        true
    }

    fn check_held(&self, what: What, at: &'static Location<'static>) {
        let Some(judge) = MAY_BLOCK.get() else { return };
        let held = held_locks();
        if !held.is_empty() && !judge(what, at, &held) {
            let held: Vec<String> = held.iter().map(ToString::to_string).collect();
            self.fail(format!("{what:?} at {at} with locks held that were taken at {}", held.join(", ")));
        }
    }
}

impl State {
    fn wake(&mut self, key: Key) {
        while let Some((_, task)) = self.waiting.range((key, 0)..=(key, TaskId::MAX)).next().copied() {
            self.may_run(task);
        }
    }

    /// It can run, if it has not ended, as soon as its process can.
    fn may_run(&mut self, id: TaskId) {
        if !matches!(self.tasks[id].state, TaskState::Ended) {
            self.set_state(id, TaskState::Runnable);
            self.list(id);
        }
    }

    fn waits(&mut self, id: TaskId, state: TaskState) {
        self.unlist(id);
        if let TaskState::Waiting { keys, deadline, .. } = &state {
            self.waiting.extend(keys.iter().map(|key| (*key, id)));
            self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
        }
        self.tasks[id].state = state;
    }

    /// Perhaps the running thread is held up for a while: of any process but the driver's.
    fn may_stall(&mut self, me: TaskId) {
        let of_driver = self.tasks[me].process == ProcessId(0);
        let ended = matches!(self.tasks[me].state, TaskState::Ended);
        if self.stalls == 0.0 || of_driver || ended || self.schedule.f64() >= self.stalls {
            return;
        }
        let longest = STALL_MIN * (1 << self.schedule.u32(1..=STALL_DOUBLES_MAX));
        let until = self.now + longest.mul_f64(self.schedule.f64());
        let at = Location::caller();
        self.waits(me, TaskState::Waiting { what: What::Sleep, keys: Vec::new(), deadline: Some(until), at });
    }

    fn ends(&mut self, id: TaskId) {
        self.unlist(id);
        self.set_state(id, TaskState::Ended);
    }

    /// It does not wait any more.
    fn set_state(&mut self, id: TaskId, state: TaskState) {
        if let TaskState::Waiting { keys, deadline, .. } = std::mem::replace(&mut self.tasks[id].state, state) {
            for key in keys {
                self.waiting.remove(&(key, id));
            }
            if let Some(deadline) = deadline {
                self.deadlines.remove(&(deadline, id));
            }
        }
    }

    fn list(&mut self, id: TaskId) {
        let task = &mut self.tasks[id];
        let process = &self.processes[task.process.0];
        let runs = process.alive && !process.frozen && matches!(task.state, TaskState::Runnable);
        if runs && task.place.is_none() {
            task.place = Some(self.runnable.len());
            self.runnable.push(id);
        }
    }

    fn unlist(&mut self, id: TaskId) {
        if let Some(place) = self.tasks[id].place.take() {
            self.runnable.swap_remove(place);
            if let Some(moved) = self.runnable.get(place) {
                self.tasks[*moved].place = Some(place);
            }
        }
    }

    /// Who goes on; what is wrong if nobody ever can.
    fn next(&mut self, me: TaskId, network: &Network) -> Result<TaskId, String> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(format!("no end after {STEPS_MAX} steps"));
        }
        self.now += Duration::from_nanos(self.schedule.u64(50..1500));
        loop {
            if let Some(due) = network.due(self.now) {
                due.wake.into_iter().for_each(|key| self.wake(key));
                let now = self.now.as_secs_f64();
                self.trace.extend(due.lines.into_iter().map(|line| format!("{now:>13.6} {:<28} {line}", "network")));
            }
            while let Some((_, task)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= self.now) {
                self.may_run(task);
            }
            if !self.runnable.is_empty() {
                break;
            }
            let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
            match deadline.into_iter().chain(network.next_event()).min() {
                Some(earliest) => self.now = earliest,
                None => return Err(self.deadlock()),
            }
        }
        let next = self.choose(me);
        self.digest = (self.digest ^ (next as u64)).wrapping_mul(0x0100_0000_01b3);
        Ok(next)
    }

    fn choose(&mut self, me: TaskId) -> TaskId {
        match self.policy {
            Policy::Random { change } => {
                if self.tasks[me].place.is_some() && self.schedule.f64() >= change {
                    return me;
                }
                self.runnable[self.schedule.usize(..self.runnable.len())]
            }
            Policy::Priorities { .. } => {
                if self.change_at.contains(&self.steps) {
                    self.lowest -= 1;
                    self.tasks[me].priority = self.lowest;
                }
                self.runnable.iter().copied().max_by_key(|id| self.tasks[*id].priority).expect("somebody can run")
            }
        }
    }

    fn deadlock(&self) -> String {
        let mut waits = BTreeMap::new();
        for (id, task) in self.tasks.iter().enumerate() {
            let process = &self.processes[task.process.0];
            if let (TaskState::Waiting { what, at, .. }, true) = (&task.state, process.alive) {
                waits.insert(id, format!("{}/{}: {what:?} at {at}", process.name, task.name));
            }
        }
        format!("deadlock: {}", waits.into_values().collect::<Vec<_>>().join("; "))
    }
}

fn park_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}
