//! Listening for followers.

use std::io;
use std::sync::atomic::Ordering;

use crate::error::Error;
use crate::leader::Leader;
use crate::leader::serve::accept;
use crate::sys::net::SocketAddr;
use crate::sys::net::TcpListener;
use crate::sys::net::ToSocketAddrs;

impl Leader {
    /// Accepts followers on `address` from now on; may be called for several. Returns the address in use, of interest for
    /// port 0.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound, or the leader is shut down.
    pub fn listen(&self, address: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        self.listen_on(Self::bind(address)?)
    }

    /// Binds the address of a leader that is not open yet, for [`listen_on`](Self::listen_on): so that a port that is taken is known
    /// before the directory becomes a leader's.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn bind(address: impl ToSocketAddrs) -> Result<TcpListener, Error> {
        let failed = |at: String, source: io::Error| Error::Listen { who: "followers", at, source };
        let addresses: Vec<_> = address
            .to_socket_addrs()
            .map_err(|error| failed("the address that was given".to_owned(), error))?
            .collect();
        let shown = || addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let failed = |error| failed(shown(), error);
        TcpListener::bind(&addresses[..]).map_err(failed)
    }

    /// Like [`listen`](Self::listen), on a socket that listens already.
    ///
    /// # Errors
    ///
    /// If the system refuses, or the leader is shut down.
    pub fn listen_on(&self, listener: TcpListener) -> Result<SocketAddr, Error> {
        let failed = |source| Error::Listen { who: "followers", at: "its address".to_owned(), source };
        let bound = listener.local_addr().map_err(failed)?;
        let kept = listener.try_clone().map_err(failed)?;
        {
            let mut listeners = self.core.listeners.lock();
            // Looked at under the lock: a shutdown either sees this listener or is seen here.
            if self.core.stopping.load(Ordering::SeqCst) {
                return Err(Error::ShuttingDown);
            }
            listeners.push(kept);
        }
        let core = self.core.clone();
        self.core
            .threads
            .spawn_until("accept", self.core.is_told_to_end(), move || accept::run(&core, &listener))
            .map_err(failed)?;
        Ok(bound)
    }
}
