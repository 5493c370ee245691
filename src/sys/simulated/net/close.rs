//! How connections end.

use std::time::Duration;

use ::rustix::io::Errno;

use super::core::{Core, Packet, Socket, SocketId, State};

impl Core {
    /// An end that is closed and has said and heard all goes.
    pub fn reap(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        if socket.state == State::Open && socket.fin && !socket.is_owed() && socket.got_fin {
            self.time_wait.insert(id, socket.host);
            self.die(id, None);
        }
    }

    /// Ends a connection with a reset.
    pub fn abort(&mut self, id: SocketId, error: Option<Errno>) {
        self.say(|core| format!("{}: resets", core.name_of(id)));
        self.launch(id, Packet::Reset);
        self.die(id, error);
    }

    /// As `close` of the last descriptor.
    pub fn close(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.handles = 0;
        match socket.state {
            State::Listening => {
                self.stop_listening(id);
                self.sockets.remove(&id);
            }
            State::Open if !socket.received.is_empty() || socket.options.linger == Some(Duration::ZERO) => {
                self.abort(id, None);
                self.sockets.remove(&id);
            }
            State::Open => {
                socket.shut_read = true;
                self.finish_writing(id);
                self.say(|core| format!("{}: closes", core.name_of(id)));
                self.reap(id);
            }
            State::Closed | State::SynSent | State::SynReceived => {
                self.die(id, None);
                self.sockets.remove(&id);
            }
        }
    }

    pub fn finish_writing(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.shut_write = true;
        if !socket.fin {
            socket.fin = true;
            self.transmit(id, false);
        }
    }

    /// Resets what nobody has accepted.
    pub fn stop_listening(&mut self, id: SocketId) {
        let waiting = |socket: &Socket| socket.listener == Some(id);
        let all: Vec<_> = self.sockets.iter().filter(|(_, socket)| waiting(socket)).map(|(id, _)| *id).collect();
        for one in all {
            self.abort(one, None);
            self.sockets.remove(&one);
        }
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.state = State::Closed;
            socket.ready.clear();
        }
        self.wake_both(id);
    }

    pub fn shutdown(&mut self, id: SocketId, read: bool, write: bool) -> Result<(), Errno> {
        let Some(socket) = self.sockets.get_mut(&id) else { return Err(Errno::BADF) };
        match socket.state {
            State::Listening if read => self.stop_listening(id),
            State::Listening => {}
            State::SynSent => {
                self.die(id, Some(Errno::CONNRESET));
                // As it was before: it could connect anew.
                if let Some(socket) = self.sockets.get_mut(&id) {
                    (socket.remote, socket.peer) = (None, None);
                    (socket.shut_read, socket.shut_write) = (false, false);
                }
            }
            State::Closed => {
                socket.shut_read |= read;
                socket.shut_write |= write;
                self.wake_both(id);
                return Err(Errno::NOTCONN);
            }
            State::Open | State::SynReceived => {
                socket.shut_read |= read;
                if write {
                    self.finish_writing(id);
                }
                self.wake_both(id);
                self.reap(id);
            }
        }
        Ok(())
    }
}
