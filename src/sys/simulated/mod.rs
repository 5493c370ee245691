//! A deterministic world behind the names of [`sys`](super): see [`world`] for how it runs.

pub mod channel;
pub mod disk;
pub mod fd;
pub mod fs;
pub mod net;
pub mod process;
mod put_back;
pub mod random;
pub mod rustix;
pub mod socket2;
pub mod sync;
pub mod thread;
pub mod time;
pub mod world;

pub use put_back::{is_put_back, put_back};

#[cfg(test)]
mod tests;
