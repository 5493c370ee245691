//! What a leader does by itself, each in a thread of its own.

pub(in crate::leader) mod attributes;
pub(in crate::leader) mod beats;
pub(in crate::leader) mod demotion;
pub(in crate::leader) mod digester;
pub(in crate::leader) mod directory;
