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
    /// Nodes that follow; of a cluster, those beside the first.
    pub(crate) followers: usize,
    pub(crate) writers: usize,
    pub(crate) pause: Duration,
    /// So long the host writes while things happen.
    pub(crate) length: Duration,
    pub(crate) catch_up: bool,
    pub(crate) small_queue: bool,
    /// Appends are refused rather than a follower lost.
    pub(crate) back_pressure: bool,
    /// The clock of files moves so often.
    pub(crate) file_clock: Duration,
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

pub(crate) const CALLS: [(&str, i32); 16] = [
    ("openat", 24),
    ("openat", 5),
    ("openat2", 24),
    ("openat2", 12),
    ("getdents64", 5),
    ("getdents64", 12),
    ("pwrite64", 28),
    ("pwrite64", 5),
    ("fdatasync", 5),
    ("fsync", 5),
    ("syncfs", 5),
    ("renameat", 5),
    ("pread64", 5),
    ("clone", 11),
    ("fstat", 5),
    ("unlinkat", 5),
];

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = &mut fastrand::Rng::with_seed(seed ^ 0x5eed);
        let kind = match rng.u8(..100) {
            0..50 => Kind::Group,
            50..85 => Kind::Cluster,
            _ => Kind::Watched,
        };
        let policy = match rng.u8(..3) {
            0 => Policy::Random { change: 0.5 },
            1 => Policy::Random { change: 0.05 },
            _ => Policy::Priorities { changes: rng.usize(1..6), within: 20_000 },
        };
        let followers = if kind == Kind::Cluster { 2 } else { rng.usize(1..=2) };
        let pause = [0, 100, 1_000, 5_000, 30_000][rng.usize(..5)];
        let length = Duration::from_millis(rng.u64(50..1_200));
        let quiet = rng.u8(..100) < 15;
        let count = if quiet { 0 } else { rng.usize(1..6) };
        let mut events: Vec<Event> = (0..count).map(|_| event(rng, kind, followers + 1, length)).collect();
        if !quiet && rng.u8(..100) < 15 {
            events.extend(failing_sync(rng, followers + 1, length));
        }
        events.sort_by_key(|event| event.at);
        Self {
            seed,
            kind,
            policy,
            followers,
            writers: rng.usize(1..=2),
            pause: Duration::from_micros(pause),
            length,
            catch_up: rng.bool(),
            small_queue: rng.u8(..100) < 25,
            back_pressure: kind != Kind::Watched && rng.u8(..100) < 10,
            file_clock: Duration::from_micros([1, 4_000, 1_000_000][rng.usize(..3)]),
            events,
        }
    }

    /// What a line of text begins with.
    pub(crate) fn empty() -> Self {
        Self {
            seed: 0,
            kind: Kind::Group,
            policy: Policy::Random { change: 0.05 },
            followers: 1,
            writers: 1,
            pause: Duration::ZERO,
            length: Duration::from_millis(200),
            catch_up: false,
            small_queue: false,
            back_pressure: false,
            file_clock: Duration::from_millis(4),
            events: Vec::new(),
        }
    }

    /// What is so or not, by the word for it.
    pub(crate) fn switches(&self) -> [(&'static str, bool); 3] {
        [("catch_up", self.catch_up), ("small_queue", self.small_queue), ("back_pressure", self.back_pressure)]
    }

    pub(crate) fn switch(&mut self, word: &str) -> Option<&mut bool> {
        match word {
            "catch_up" => Some(&mut self.catch_up),
            "small_queue" => Some(&mut self.small_queue),
            "back_pressure" => Some(&mut self.back_pressure),
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
        self.kind == Kind::Group
            && self.events.iter().all(|event| matches!(event.fault, Fault::Stop | Fault::Cut { .. } | Fault::Reset))
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

fn event(rng: &mut fastrand::Rng, kind: Kind, nodes: usize, length: Duration) -> Event {
    let fault = match rng.u8(..100) {
        0..8 => Fault::Freeze,
        8..22 => Fault::Kill,
        22..36 => Fault::Stop,
        36..46 => Fault::PowerCut,
        46..50 => Fault::PowerCutOfAll,
        50..60 => {
            let sides = rng.u8(1..4);
            Fault::Cut { to: sides & 1 != 0, from: sides & 2 != 0 }
        }
        60..66 => Fault::Slow { rate: 1 << rng.u32(10..20) },
        66..72 => Fault::Reset,
        72..78 => Fault::DiskStall,
        78..94 => {
            let (call, errno) = CALLS[rng.usize(..CALLS.len())];
            let probability = [0.01, 0.1, 1.0][rng.usize(..3)];
            Fault::Errors { call, errno, probability, left: rng.u32(1..4) }
        }
        94..97 => Fault::DiskFull,
        _ if kind != Kind::Cluster => Fault::DiskFull,
        _ => Fault::CutFromCoordinator,
    };
    let length = u64::try_from(length.as_micros()).expect("short");
    Event {
        at: Duration::from_micros(rng.u64(..length)),
        node: rng.usize(..nodes),
        fault,
        lasts: Duration::from_micros(if rng.bool() { rng.u64(1..50_000) } else { rng.u64(50_000..4_000_000) }),
    }
}
