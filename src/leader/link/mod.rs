//! One follower's connection: what is written to it, what is read from it, and when it stands still.

pub(in crate::leader) mod acks;
pub(in crate::leader) mod frame;
pub(in crate::leader) mod messages;
pub(in crate::leader) mod socket;
