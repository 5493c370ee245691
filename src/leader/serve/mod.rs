//! A follower's connection from its arrival to its end: accepted, authenticated, synced, fed, and let go.

pub(in crate::leader) mod accept;
mod connection;
mod door;
mod handshake;
mod place;
