//! What happens in a history: drawn from its seed, and what a shrunk one leaves out.

use std::collections::BTreeSet;
use std::fmt;
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

const CALLS: [(&str, i32); 16] = [
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
        let kind = if rng.u8(..100) < 65 { Kind::Group } else { Kind::Cluster };
        let policy = match rng.u8(..3) {
            0 => Policy::Random { change: 0.5 },
            1 => Policy::Random { change: 0.05 },
            _ => Policy::Priorities { changes: rng.usize(1..6), within: 20_000 },
        };
        let followers = if kind == Kind::Cluster { 2 } else { rng.usize(1..=2) };
        let pause = [0, 100, 1_000, 5_000, 30_000][rng.usize(..5)];
        let length = Duration::from_millis(rng.u64(200..2_000));
        let quiet = rng.u8(..100) < 15;
        let count = if quiet { 0 } else { rng.usize(1..6) };
        let mut events: Vec<Event> = (0..count).map(|_| event(rng, kind, followers + 1, length)).collect();
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
            file_clock: Duration::from_micros([1, 4_000, 1_000_000][rng.usize(..3)]),
            events,
        }
    }

    /// The same without some of its events.
    pub(crate) fn without(&self, left_out: &BTreeSet<usize>) -> Self {
        let kept =
            self.events.iter().enumerate().filter(|(at, _)| !left_out.contains(at)).map(|(_, event)| event.clone());
        Self { events: kept.collect(), ..self.clone() }
    }
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
        _ if kind == Kind::Group => Fault::DiskFull,
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

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, node, fault, lasts } = self;
        write!(f, "at {:.6} s node {node}: {fault:?} for {:.6} s", at.as_secs_f64(), lasts.as_secs_f64())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, kind, policy, followers, writers, pause, length, catch_up, small_queue, file_clock, .. } =
            self;
        write!(
            f,
            "seed {seed}: {kind:?}, {followers} followers, {writers} writers that pause {pause:?}, {length:?}, {policy:?}, catch-up \
             {catch_up}, small queue {small_queue}, file clock {file_clock:?}, {} events",
            self.events.len()
        )
    }
}
