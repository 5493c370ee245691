//! How a connection ends for who waits for something of it.

use std::io::{self, ErrorKind};

use crate::error::Error;

pub(in crate::leader) fn broken(error: io::Error) -> Error {
    Error::connection("while a follower joins", error)
}

/// The connection ended while we waited for something; why is noted already, or follows from here.
pub(in crate::leader) fn gone() -> Error {
    broken(ErrorKind::ConnectionAborted.into())
}
