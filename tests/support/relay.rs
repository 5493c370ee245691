//! A link between a leader and its followers that can be held up.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// Forwards every connection to the leader. While it is held, it takes nothing off the leader's sockets.
pub struct Relay {
    pub address: SocketAddr,
    listener: TcpListener,
    gate: Arc<Gate>,
    acceptor: Option<JoinHandle<()>>,
}

struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    passed: [AtomicU64; 2],
}

struct State {
    leader: SocketAddr,
    /// Whoever comes is sent away.
    refuses: bool,
    connections: u64,
    /// How many bytes of the leader's may pass; `None` for all.
    allowed: Option<u64>,
    closed: bool,
    sockets: Vec<TcpStream>,
}

impl Relay {
    pub fn start(leader: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = listener.try_clone().unwrap();
        let state = State { leader, refuses: false, connections: 0, allowed: None, closed: false, sockets: Vec::new() };
        let gate = Arc::new(Gate { state: Mutex::new(state), changed: Condvar::new(), passed: Default::default() });
        let on = gate.clone();
        let acceptor = std::thread::spawn(move || {
            let mut pumps = Vec::new();
            while let Ok((near, _)) = accepting.accept() {
                let (leader, refuses) = {
                    let state = on.state.lock();
                    (state.leader, state.refuses)
                };
                if refuses {
                    continue;
                }
                // A small buffer: what is held is soon held at the leader.
                let far = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                far.set_recv_buffer_size(16 << 10).unwrap();
                if far.connect(&leader.into()).is_err() {
                    continue;
                }
                let far = TcpStream::from(far);
                far.set_nodelay(true).unwrap();
                near.set_nodelay(true).unwrap();
                {
                    let mut state = on.state.lock();
                    if state.closed {
                        break;
                    }
                    if state.refuses {
                        continue;
                    }
                    state.connections += 1;
                    state.sockets.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                }
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (gate, counts) = (on.clone(), on.clone());
                pumps.push(std::thread::spawn(move || pump(&far, &near, &gate.passed[0], Some(&gate))));
                pumps.push(std::thread::spawn(move || pump(&near_too, &far_too, &counts.passed[1], None)));
            }
            pumps.into_iter().for_each(|pump| pump.join().unwrap());
        });
        Self { address, listener, gate, acceptor: Some(acceptor) }
    }

    pub fn hold(&self) {
        self.gate.state.lock().allowed = Some(0);
    }

    /// Lets so many bytes of the leader's pass, in addition to those that were allowed before.
    pub fn allow(&self, bytes: u64) {
        *self.gate.state.lock().allowed.get_or_insert(0) += bytes;
        self.gate.changed.notify_all();
    }

    pub fn release(&self) {
        self.gate.state.lock().allowed = None;
        self.gate.changed.notify_all();
    }

    /// Whether all that is allowed has passed.
    pub fn is_idle(&self) -> bool {
        self.gate.state.lock().allowed == Some(0)
    }

    /// Breaks all connections there are, and lets nobody through until [`lead_to`](Self::lead_to).
    pub fn refuse(&self) {
        self.gate.state.lock().refuses = true;
        self.cut();
    }

    /// Lets everybody through, to this leader from now on.
    pub fn lead_to(&self, leader: SocketAddr) {
        let mut state = self.gate.state.lock();
        (state.leader, state.refuses) = (leader, false);
    }

    /// How many connections there were so far, how many bytes went to followers, and how many to the leader.
    pub fn counts(&self) -> (u64, [u64; 2]) {
        let connections = self.gate.state.lock().connections;
        (connections, [0, 1].map(|way: usize| self.gate.passed[way].load(Ordering::SeqCst)))
    }

    /// Breaks all connections there are.
    pub fn cut(&self) {
        let sockets = std::mem::take(&mut self.gate.state.lock().sockets);
        for socket in sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Gate {
    /// Waits until something may pass. Returns how much of it, up to `most`, and whether what does not pass is to be given back.
    fn take(&self, most: usize) -> (usize, bool) {
        let mut state = self.state.lock();
        while state.allowed == Some(0) && !state.closed {
            self.changed.wait(&mut state);
        }
        let Some(allowed) = &mut state.allowed else { return (most, false) };
        let taken = most.min(usize::try_from(*allowed).unwrap_or(usize::MAX));
        *allowed -= taken as u64;
        (taken, true)
    }

    fn give_back(&self, bytes: usize) {
        if let Some(allowed) = &mut self.state.lock().allowed {
            *allowed += bytes as u64;
            self.changed.notify_all();
        }
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, passed: &AtomicU64, gate: Option<&Gate>) {
    let mut buffer = [0; 16 << 10];
    loop {
        let (taken, limited) = gate.map_or((buffer.len(), false), |gate| gate.take(buffer.len()));
        let read = from.read(&mut buffer[..taken]).unwrap_or(0);
        if let Some(gate) = gate.filter(|_| limited) {
            gate.give_back(taken - read);
        }
        passed.fetch_add(read as u64, Ordering::SeqCst);
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Drop for Relay {
    fn drop(&mut self) {
        let sockets = {
            let mut state = self.gate.state.lock();
            state.closed = true;
            std::mem::take(&mut state.sockets)
        };
        self.gate.changed.notify_all();
        let _ = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        for socket in sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}
