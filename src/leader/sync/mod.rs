//! Finding what a follower lacks, and bringing it, until it is attached to the stream.

pub(in crate::leader) mod catch_up;
mod compare;
pub(in crate::leader) mod full_sync;
mod moves;
mod others;
pub(in crate::leader) mod ranges;
pub(in crate::leader) mod resume;
pub(in crate::leader) mod view;
