//! A relay between a follower and its leader: it counts what moves, in both directions, and it can be closed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    moved: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: bool,
    /// When the last connection came.
    accepted: Option<Instant>,
    sockets: Vec<TcpStream>,
}

impl Relay {
    /// To a leader; open.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let state = Mutex::new(State { open: true, ..State::default() });
        let shared = Arc::new(Shared { to, moved: AtomicU64::new(0), state });
        let its = shared.clone();
        // It ends with the process, as there are but few.
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                its.take(near);
            }
        });
        Self { address, shared }
    }

    /// Bytes since it was last opened, both ways.
    pub fn moved(&self) -> u64 {
        self.shared.moved.load(Ordering::SeqCst)
    }

    /// When the connection came that is there now.
    pub fn accepted(&self) -> Option<Instant> {
        self.shared.state.lock().accepted
    }

    /// Cuts the connection, and lets none through.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.open = false;
        state.accepted = None;
        for socket in state.sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Counts anew.
    pub fn open(&self) {
        let mut state = self.shared.state.lock();
        self.shared.moved.store(0, Ordering::SeqCst);
        state.open = true;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn take(self: &Arc<Self>, near: TcpStream) {
        let mut state = self.state.lock();
        if !state.open {
            return;
        }
        // There may be none just now: then the connection ends, as it would there.
        let Ok(far) = TcpStream::connect(self.to) else { return };
        state.accepted = Some(Instant::now());
        for (from, to) in [(&near, &far), (&far, &near)] {
            from.set_nodelay(true).expect("a TCP socket");
            let clone = |socket: &TcpStream| socket.try_clone().expect("a socket more");
            state.sockets.push(clone(from));
            let (shared, from, to) = (self.clone(), clone(from), clone(to));
            std::thread::spawn(move || shared.copy(from, to));
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            self.moved.fetch_add(length as u64, Ordering::SeqCst);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}
