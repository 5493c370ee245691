//! Up to where a follower has the stream.

use crate::config::Durability;

/// Up to where a follower has the stream, as positions. What it was sent in vain is not counted, nor anything after it until
/// that was made up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::leader) struct Has {
    pub(in crate::leader) received: u64,
    pub(in crate::leader) written: u64,
    pub(in crate::leader) durable: u64,
    /// Whether it has made durable all that it had when it attached: what it was synced with, too, which no position tells.
    pub(in crate::leader) flushed: bool,
}

impl Has {
    pub(in crate::leader) fn at(self, durability: Durability) -> u64 {
        match durability {
            Durability::Received => self.received,
            Durability::Written => self.written,
            Durability::Durable => self.durable,
        }
    }

    pub(in crate::leader) fn reaches(self, other: Self) -> bool {
        self.received >= other.received && self.written >= other.written && self.durable >= other.durable
    }

    pub(in crate::leader) fn raise(&mut self, durability: Durability, position: u64) {
        let mark = match durability {
            Durability::Received => &mut self.received,
            Durability::Written => &mut self.written,
            Durability::Durable => &mut self.durable,
        };
        *mark = position.max(*mark);
    }
}

/// Names one way of a follower to the stream, from where it began to join: what is heard late of an older one has no effect.
pub(in crate::leader) type Ticket = u64;
