//! Which files there are for the leader: what is excluded, what cannot be read, what was there when it last led, how they looked at the
//! start, and who changes one.

pub(in crate::leader) mod exclude;
pub(in crate::leader) mod found;
pub(in crate::leader) mod last_led;
pub(in crate::leader) mod locks;
pub(in crate::leader) mod looks;
pub(in crate::leader) mod unreadable;
