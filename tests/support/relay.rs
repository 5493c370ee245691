//! A link between a leader and its followers that can be held up.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// Forwards every connection to the leader. While it is held, it takes nothing off the leader's sockets.
pub struct Relay {
    pub address: SocketAddr,
    listener: TcpListener,
    gate: Arc<Gate>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: bool,
    closed: bool,
    sockets: Vec<TcpStream>,
}

impl Relay {
    pub fn start(leader: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = listener.try_clone().unwrap();
        let gate = Arc::new(Gate::default());
        let on = gate.clone();
        let acceptor = std::thread::spawn(move || {
            let mut pumps = Vec::new();
            while let Ok((near, _)) = accepting.accept() {
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
                    state.sockets.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                }
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let gate = on.clone();
                pumps.push(std::thread::spawn(move || pump(&far, &near, Some(&gate))));
                pumps.push(std::thread::spawn(move || pump(&near_too, &far_too, None)));
            }
            pumps.into_iter().for_each(|pump| pump.join().unwrap());
        });
        Self { address, listener, gate, acceptor: Some(acceptor) }
    }

    pub fn hold(&self) {
        self.gate.state.lock().held = true;
    }

    pub fn release(&self) {
        self.gate.state.lock().held = false;
        self.gate.changed.notify_all();
    }
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock();
        while state.held && !state.closed {
            self.changed.wait(&mut state);
        }
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, gate: Option<&Gate>) {
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(gate) = gate {
            gate.pass();
        }
        match from.read(&mut buffer) {
            Ok(length) if length > 0 && to.write_all(&buffer[..length]).is_ok() => {}
            _ => break,
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
