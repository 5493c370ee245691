//! What there is of each follower: its handle, where it is, what became of it before, and when it may come.
//!
//! Nothing here knows of the stream, of commits, or of the leader as a whole.

pub(in crate::leader) mod admission;
pub(in crate::leader) mod clash;
pub(in crate::leader) mod door;
pub(in crate::leader) mod follower;
pub(in crate::leader) mod gone;
pub(in crate::leader) mod has;
pub(in crate::leader) mod history;
mod in_flight;
mod meter;
pub(in crate::leader) mod progress;
pub(in crate::leader) mod stalls;
pub(in crate::leader) mod status;
pub(in crate::leader) mod strangers;
pub(in crate::leader) mod turn;
pub(in crate::leader) mod unauthenticated;
