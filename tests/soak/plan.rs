//! Which faults come when: decided by the seed alone. Whom a fault meets that is meant for the leader shows when it comes.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL; started again at the end.
    Kill,
    /// All nodes at once.
    KillAll,
    /// SIGSTOP, and SIGCONT at the end.
    Freeze,
    /// SIGTERM; started again at the end.
    Restart,
    /// A clean stop, and a start with an older copy of its directory once the recorded in-sync set is without it.
    PutBack,
    /// The same, with nothing in it.
    Wipe,
    /// From everybody, both ways.
    Isolate,
    /// Nothing of what it sends arrives.
    Mute,
    /// Nothing of what is sent to it arrives.
    Deafen,
    /// From etcd only.
    CutFromEtcd,
    /// From one of the other nodes only.
    CutFromOne,
    /// With one of the other nodes, from etcd and the third.
    Split,
    /// Its link is down, and it can see that.
    Unplug,
    SlowLink,
    FillDisk,
    KillEtcd,
    FreezeEtcd,
    /// Of etcd's members all.
    KillAllEtcd,
}

impl Kind {
    const ALL: [Self; 18] = [
        Self::Kill,
        Self::KillAll,
        Self::Freeze,
        Self::Restart,
        Self::PutBack,
        Self::Wipe,
        Self::Isolate,
        Self::Mute,
        Self::Deafen,
        Self::CutFromEtcd,
        Self::CutFromOne,
        Self::Split,
        Self::Unplug,
        Self::SlowLink,
        Self::FillDisk,
        Self::KillEtcd,
        Self::FreezeEtcd,
        Self::KillAllEtcd,
    ];

    /// Those of which a node, or etcd, can only have one at a time.
    pub fn class(self) -> Class {
        match self {
            Self::Kill | Self::Freeze | Self::Restart | Self::PutBack | Self::Wipe => Class::Process,
            Self::KillAll => Class::AllProcesses,
            Self::Isolate | Self::Mute | Self::Deafen | Self::CutFromEtcd | Self::CutFromOne | Self::Split => {
                Class::Cut
            }
            Self::Unplug => Class::Cable,
            Self::SlowLink => Class::Rate,
            Self::FillDisk => Class::Disk,
            Self::KillEtcd | Self::FreezeEtcd | Self::KillAllEtcd => Class::Etcd,
        }
    }

    /// Seconds that it lasts, at least and at most: from what nobody notices to what outlasts a lease.
    fn lasts(self) -> (f64, f64) {
        match self {
            Self::Kill | Self::KillAll | Self::KillEtcd | Self::KillAllEtcd => (0.0, 12.0),
            Self::Restart => (0.0, 6.0),
            Self::PutBack | Self::Wipe => (1.0, 6.0),
            Self::SlowLink => (4.0, 15.0),
            _ => (0.3, 14.0),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Process,
    AllProcesses,
    Cut,
    Cable,
    Rate,
    Disk,
    Etcd,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill",
            Self::KillAll => "kill all nodes",
            Self::Freeze => "freeze",
            Self::Restart => "restart",
            Self::PutBack => "put an old copy back",
            Self::Wipe => "wipe",
            Self::Isolate => "isolate",
            Self::Mute => "cut what it sends",
            Self::Deafen => "cut what it receives",
            Self::CutFromEtcd => "cut from etcd",
            Self::CutFromOne => "cut from one node",
            Self::Split => "split, with another,",
            Self::Unplug => "link down",
            Self::SlowLink => "slow link",
            Self::FillDisk => "fill disk",
            Self::KillEtcd => "kill etcd",
            Self::FreezeEtcd => "freeze etcd",
            Self::KillAllEtcd => "kill all of etcd",
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Victim {
    /// Whoever leads when it comes.
    Leader,
    /// 0 to 2.
    Node(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Since the beginning of its round.
    pub begins: Duration,
    pub lasts: Duration,
    pub kind: Kind,
    pub victim: Victim,
}

/// The faults up to the next time that all are to be in sync again, in their order.
pub fn round(random: &mut Rng) -> Vec<Fault> {
    let (mut faults, mut begins, mut ends) = (Vec::<Fault>::new(), 0.0_f64, 0.0_f64);
    for _ in 0..random.usize(2..=6) {
        let kind = Kind::ALL[random.usize(..Kind::ALL.len())];
        let (least, most) = kind.lasts();
        // More short ones than long ones.
        let lasts = least + (most - least) * random.f64() * random.f64();
        let overlaps = !faults.is_empty() && random.u32(..10) < 4;
        begins = if overlaps { begins + random.f64() * (ends - begins) } else { ends + 0.5 + 3.0 * random.f64() };
        ends = ends.max(begins + lasts);
        let leader = random.u32(..10) < 6 && !matches!(kind, Kind::PutBack | Kind::Wipe);
        let victim = if leader { Victim::Leader } else { Victim::Node(random.usize(..3)) };
        let seconds = Duration::from_secs_f64;
        faults.push(Fault { begins: seconds(begins), lasts: seconds(lasts), kind, victim });
    }
    faults
}
