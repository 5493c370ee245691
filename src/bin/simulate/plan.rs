//! What happens in a history: drawn from its seed, and what a shrunk one leaves out.

use std::collections::BTreeSet;
use std::time::Duration;

use paceline::sys::world::Policy;

/// A history before it runs.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) kind: Kind,
    pub(crate) policy: Policy,
    /// How likely a thread is held up for a while at one of its steps.
    pub(crate) stalls: f64,
    /// Nodes that follow; of a cluster, those beside the first.
    pub(crate) followers: usize,
    pub(crate) writers: usize,
    pub(crate) pause: Duration,
    /// So many percent of what writers do are commits.
    pub(crate) commits: u8,
    /// So many percent of what they write is large.
    pub(crate) large: u8,
    /// So many percent of what they do is to write in place.
    pub(crate) in_place: u8,
    /// So long the host writes while things happen.
    pub(crate) length: Duration,
    pub(crate) catch_up: bool,
    pub(crate) small_queue: bool,
    /// Appends are refused rather than a follower lost.
    pub(crate) back_pressure: bool,
    /// Or they wait.
    pub(crate) appends_wait: bool,
    /// Writers go on, and are called when something is committed.
    pub(crate) commits_call: bool,
    /// The clock of files moves so often.
    pub(crate) file_clock: Duration,
    /// What holds at every step is looked at as often, at least.
    pub(crate) look_every: Duration,
    pub(crate) events: Vec<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A leader that stays one, and followers.
    Group,
    /// Nodes that are elected.
    Cluster,
    /// A leader whose directory is watched: the host announces nothing, and commits nothing.
    Watched,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Group, Self::Cluster, Self::Watched];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Cluster => "cluster",
            Self::Watched => "watched",
        }
    }
}

/// Something that happens to one node, and is over after a while.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) node: usize,
    pub(crate) fault: Fault,
    pub(crate) lasts: Duration,
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Its process is stopped (`SIGSTOP`), and goes on.
    Freeze,
    /// Its process is killed, and started again.
    Kill,
    /// It stops as it should, and is started again.
    Stop,
    /// Its machine loses power, and is started again.
    PowerCut,
    /// All machines lose power at once.
    PowerCutOfAll,
    /// Nothing reaches it, or nothing leaves it, or both.
    Cut { to: bool, from: bool },
    /// Its links take so many bytes a second.
    Slow { rate: u64 },
    /// Its connections are reset.
    Reset,
    /// Its disk takes nothing and gives nothing.
    DiskStall,
    /// System calls of its process fail.
    Errors { call: &'static str, errno: i32, probability: f64, left: u32 },
    /// Its disk is full.
    DiskFull,
    /// It does not reach the coordinator.
    CutFromCoordinator,
}

pub(crate) const CALLS: [(&str, i32); 20] = [
    ("openat", 24),
    ("openat", 5),
    ("openat2", 24),
    ("openat2", 12),
    ("getdents64", 5),
    ("getdents64", 12),
    ("pwrite64", 28),
    ("pwrite64", 5),
    ("fdatasync", 5),
    ("fdatasync", 28),
    ("fsync", 5),
    ("fsync", 28),
    ("syncfs", 5),
    ("renameat", 5),
    ("pread64", 5),
    ("clone", 11),
    ("statx", 5),
    ("statx", 12),
    ("unlinkat", 5),
    ("mkdirat", 28),
];

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = &mut fastrand::Rng::with_seed(seed ^ 0x5eed);
        let kind = match rng.u8(..100) {
            0..45 => Kind::Group,
            45..78 => Kind::Cluster,
            _ => Kind::Watched,
        };
        let policy = match rng.u8(..3) {
            0 => Policy::Random { change: 0.5 },
            1 => Policy::Random { change: 0.05 },
            _ => Policy::Priorities { changes: rng.usize(1..6), within: 20_000 },
        };
        let stalls = [0.0, 0.0001, 0.001, 0.003][rng.usize(..4)];
        let followers = if kind == Kind::Cluster { 2 } else { rng.usize(1..=2) };
        let pause = [0, 100, 1_000, 5_000, 30_000][rng.usize(..5)];
        let length = Duration::from_millis(rng.u64(50..1_200));
        let quiet = rng.u8(..100) < 15;
        let mix = Mix::new(rng, kind, followers + 1);
        let count = if quiet { 0 } else { rng.usize(1..7) };
        let mut events: Vec<Event> = (0..count).map(|_| mix.event(rng, length)).collect();
        if !quiet && rng.u8(..100) < 15 {
            events.extend(failing_sync(rng, followers + 1, length));
        }
        // Much goes wrong only where one thing comes right after another.
        for at in 1..events.len() {
            if rng.u8(..100) < 40 {
                let within = [1_000, 20_000, 100_000][rng.usize(..3)];
                let after = Duration::from_micros(rng.u64(..within));
                events[at].at = (events[at - 1].at + after).min(length);
            }
        }
        events.sort_by_key(|event| event.at);
        let back_pressure = rng.u8(..100) < 15;
        Self {
            seed,
            kind,
            policy,
            stalls,
            followers,
            writers: rng.usize(1..=2),
            pause: Duration::from_micros(pause),
            commits: [3, 22, 22, 50][rng.usize(..4)],
            large: [0, 2, 2, 10][rng.usize(..4)],
            in_place: [0, 10, 40][rng.usize(..3)],
            length,
            catch_up: rng.bool(),
            small_queue: rng.u8(..100) < 25,
            back_pressure,
            appends_wait: back_pressure && rng.bool(),
            commits_call: rng.u8(..100) < 25,
            file_clock: Duration::from_micros([1, 4_000, 1_000_000][rng.usize(..3)]),
            look_every: Duration::from_micros([25_000, 25_000, 10_000, 4_000][rng.usize(..4)]),
            events,
        }
    }

    /// What a line of text begins with.
    pub(crate) fn empty() -> Self {
        Self {
            seed: 0,
            kind: Kind::Group,
            policy: Policy::Random { change: 0.05 },
            stalls: 0.0,
            followers: 1,
            writers: 1,
            pause: Duration::ZERO,
            commits: 22,
            large: 2,
            in_place: 0,
            length: Duration::from_millis(200),
            catch_up: false,
            small_queue: false,
            back_pressure: false,
            appends_wait: false,
            commits_call: false,
            file_clock: Duration::from_millis(4),
            look_every: Duration::from_millis(25),
            events: Vec::new(),
        }
    }

    /// What is so or not, by the word for it.
    pub(crate) fn switches(&self) -> [(&'static str, bool); 5] {
        [
            ("catch_up", self.catch_up),
            ("small_queue", self.small_queue),
            ("back_pressure", self.back_pressure),
            ("appends_wait", self.appends_wait),
            ("commits_call", self.commits_call),
        ]
    }

    pub(crate) fn switch(&mut self, word: &str) -> Option<&mut bool> {
        match word {
            "catch_up" => Some(&mut self.catch_up),
            "small_queue" => Some(&mut self.small_queue),
            "back_pressure" => Some(&mut self.back_pressure),
            "appends_wait" => Some(&mut self.appends_wait),
            "commits_call" => Some(&mut self.commits_call),
            _ => None,
        }
    }

    /// Smaller ones that may fail in the same way, the smallest first.
    pub(crate) fn smaller(&self) -> Vec<Self> {
        let mut all: Vec<Self> = (0..self.events.len()).map(|at| self.without(&BTreeSet::from([at]))).collect();
        if self.writers > 1 {
            all.push(Self { writers: 1, ..self.clone() });
        }
        let halved = self.length / 2;
        if self.events.iter().all(|event| event.at < halved) {
            all.push(Self { length: halved, ..self.clone() });
        }
        all
    }

    /// Whether a leader that stops has announced all that is on its disk, and can record who has it.
    pub(crate) fn stops_are_clean(&self) -> bool {
        let of_leader = |event: &Event| event.node == 0;
        let is_clean =
            |event: &Event| !matches!(event.fault, Fault::Errors { .. } | Fault::DiskFull | Fault::CutFromCoordinator);
        self.kind == Kind::Group && self.events.iter().filter(|event| of_leader(event)).all(is_clean)
    }

    /// The same without some of its events.
    pub(crate) fn without(&self, left_out: &BTreeSet<usize>) -> Self {
        let kept =
            self.events.iter().enumerate().filter(|(at, _)| !left_out.contains(at)).map(|(_, event)| event.clone());
        Self { events: kept.collect(), ..self.clone() }
    }
}

/// The disk of one fails a sync, and what syncs is started anew.
fn failing_sync(rng: &mut fastrand::Rng, nodes: usize, length: Duration) -> [Event; 2] {
    let node = if rng.bool() { 0 } else { rng.usize(..nodes) };
    let call = ["fdatasync", "syncfs"][rng.usize(..2)];
    let fault = Fault::Errors { call, errno: 5, probability: 1.0, left: rng.u32(1..3) };
    let at = length.mul_f64(rng.f64() / 2.0);
    let later = at + (length - at).mul_f64(rng.f64());
    let ends = [Fault::Kill, Fault::Stop, Fault::PowerCut][rng.usize(..3)].clone();
    let event = |at, fault, lasts| Event { at, node, fault, lasts };
    [event(at, fault, length), event(later, ends, Duration::from_millis(rng.u64(1..200)))]
}

/// Its place among the kinds of faults, see [`Mix`].
const ERRORS: usize = 9;

/// What may happen in one history. Where all may, each does rarely, and seldom twice: most histories have a few kinds, or one node.
struct Mix {
    /// Of so many chances, by the order of [`Mix::fault`].
    weights: [u32; 12],
    calls: Vec<(&'static str, i32)>,
    nodes: std::ops::Range<usize>,
}

impl Mix {
    fn new(rng: &mut fastrand::Rng, kind: Kind, nodes: usize) -> Self {
        let mut weights = [8, 14, 18, 10, 4, 10, 6, 6, 6, 16, 3, 6];
        // What a watcher does is look.
        let looks = kind == Kind::Watched && rng.bool();
        if looks || rng.u8(..100) < 60 {
            let mut kinds: Vec<usize> = (0..rng.usize(1..=3)).map(|_| rng.usize(..weights.len())).collect();
            if looks {
                kinds[0] = ERRORS;
            }
            for (kind, weight) in weights.iter_mut().enumerate() {
                *weight = u32::from(kinds.contains(&kind));
            }
        }
        let mut calls = CALLS.to_vec();
        if looks {
            calls.retain(|(call, _)| ["openat2", "statx", "getdents64"].contains(call));
        } else if rng.bool() {
            calls = (0..rng.usize(1..=2)).map(|_| CALLS[rng.usize(..CALLS.len())]).collect();
        }
        let node = if looks { 0 } else { rng.usize(..nodes) };
        Self { weights, calls, nodes: if looks || rng.u8(..100) < 30 { node..node + 1 } else { 0..nodes } }
    }

    fn event(&self, rng: &mut fastrand::Rng, length: Duration) -> Event {
        let fault = self.fault(rng);
        // Half of what can cost a leader its lease lasts long enough for that.
        let long = if matches!(fault, Fault::Freeze | Fault::CutFromCoordinator) { 50 } else { 20 };
        let lasts = match rng.u8(..100) {
            at if at < long => rng.u64(1_000_000..5_000_000),
            at if at < long + 30 => rng.u64(50_000..1_000_000),
            _ => rng.u64(1..50_000),
        };
        let length = u64::try_from(length.as_micros()).expect("short");
        Event {
            at: Duration::from_micros(rng.u64(..length)),
            node: rng.usize(self.nodes.clone()),
            fault,
            lasts: Duration::from_micros(lasts),
        }
    }

    fn fault(&self, rng: &mut fastrand::Rng) -> Fault {
        let mut chance = rng.u32(..self.weights.iter().sum::<u32>());
        let drawn = self.weights.iter().position(|weight| {
            let is_it = chance < *weight;
            chance = chance.saturating_sub(*weight);
            is_it
        });
        match drawn.expect("less than all of them") {
            0 => Fault::Freeze,
            1 => Fault::Kill,
            2 => Fault::Stop,
            3 => Fault::PowerCut,
            4 => Fault::PowerCutOfAll,
            5 => {
                let sides = rng.u8(1..4);
                Fault::Cut { to: sides & 1 != 0, from: sides & 2 != 0 }
            }
            6 => Fault::Slow { rate: 1 << rng.u32(10..20) },
            7 => Fault::Reset,
            8 => Fault::DiskStall,
            ERRORS => {
                let (call, errno) = self.calls[rng.usize(..self.calls.len())];
                let probability = [0.01, 0.1, 1.0][rng.usize(..3)];
                Fault::Errors { call, errno, probability, left: rng.u32(1..4) }
            }
            10 => Fault::DiskFull,
            _ => Fault::CutFromCoordinator,
        }
    }
}
