//! TCP as Linux does it, as far as programs can tell.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ::rustix::io::Errno;

use super::super::world::Key;
use super::core::{Core, Event, Flight, Packet, Socket, SocketId, State};
use super::driver::Connection;

/// Of each packet, beside its payload.
const HEADER_BYTES: u64 = 66;

impl Core {
    /// The first packet of a connection.
    pub fn connect(&mut self, id: SocketId, mut remote: SocketAddr, peer_keys: (Key, Key)) -> Result<(), Errno> {
        let socket = self.sockets.get(&id).ok_or(Errno::BADF)?;
        match socket.state {
            State::Closed if socket.remote.is_none() => {}
            State::SynSent => return Err(Errno::ALREADY),
            State::Open | State::SynReceived => return Err(Errno::ISCONN),
            _ => return Err(Errno::INVAL),
        }
        let host = socket.host;
        if remote.ip().is_unspecified() {
            remote.set_ip(super::core::LOCALHOST);
        }
        let own = if remote.ip().is_loopback() { remote.ip() } else { host };
        if socket.local.is_none() {
            self.bind(id, SocketAddr::new(own, 0))?;
        }
        let (now, record) = (self.now, self.connections.len());
        let socket = self.sockets.get_mut(&id).ok_or(Errno::BADF)?;
        let mut local = socket.local.ok_or(Errno::INVAL)?;
        local.set_ip(own);
        (socket.local, socket.remote, socket.state) = (Some(local), Some(remote), State::SynSent);
        (socket.peer_keys, socket.connection) = (Some(peer_keys), Some((record, true)));
        self.connections.push(Connection::new(now, local, remote));
        self.say(|_| format!("connects {local} > {remote}"));
        self.launch(id, Packet::Syn);
        Ok(())
    }

    pub fn peer_host(&self, socket: &Socket) -> Option<IpAddr> {
        let ip = socket.remote?.ip();
        Some(if ip.is_loopback() || ip == socket.host { socket.host } else { ip })
    }

    /// Sends a packet to the other end.
    pub fn launch(&mut self, id: SocketId, packet: Packet) {
        let Some(socket) = self.sockets.get(&id) else { return };
        let Some(to_host) = self.peer_host(socket) else { return };
        let (from_host, to) = (socket.host, socket.peer.unwrap_or(0));
        self.send_in_order(Flight { from: id, to, from_host, to_host, packet });
    }

    /// After what its socket has sent before.
    fn send_in_order(&mut self, flight: Flight) {
        let sender = flight.from;
        let last = self.sockets.get(&sender).map_or(self.now, |socket| socket.last_arrival);
        if let (Some(arrival), Some(socket)) = (self.send(flight, last), self.sockets.get_mut(&sender)) {
            socket.last_arrival = arrival;
        }
    }

    /// Puts a packet on its way; when it will arrive.
    fn send(&mut self, flight: Flight, after: Duration) -> Option<Duration> {
        let (from, to) = (flight.from_host, flight.to_host);
        if self.is_lost(&flight) {
            self.lost(&flight);
            return None;
        }
        let link = self.link(from, to);
        let payload = if let Packet::Data { bytes, .. } = &flight.packet { bytes.len() as u64 } else { 0 };
        let takes = link.time_for(payload + HEADER_BYTES) + if payload > 0 { link.gap } else { Duration::ZERO };
        let latency = self.draw(link.latency);
        let free = self.free_at.entry((from, to)).or_default();
        let depart = self.now.max(*free) + takes;
        if !takes.is_zero() {
            *free = depart;
        }
        let arrival = (depart + latency).max(after + Duration::from_nanos(1));
        self.at(arrival, Event::Arrive(flight));
        Some(arrival)
    }

    /// What is on its way over a link goes at its new speed.
    pub fn send_again(&mut self, from: IpAddr, to: IpAddr) {
        self.free_at.remove(&(from, to));
        let is_on_it = |event: &Event| matches!(event, Event::Arrive(it) if (it.from_host, it.to_host) == (from, to));
        let keys: Vec<_> = self.queue.iter().filter(|(_, event)| is_on_it(event)).map(|(key, _)| *key).collect();
        let taken = keys.iter().filter_map(|key| self.queue.remove(key));
        let flights: Vec<_> =
            taken.filter_map(|event| if let Event::Arrive(flight) = event { Some(flight) } else { None }).collect();
        for flight in &flights {
            if let Some(socket) = self.sockets.get_mut(&flight.from) {
                socket.last_arrival = self.now;
            }
        }
        flights.into_iter().for_each(|flight| self.send_in_order(flight));
    }

    pub fn draw(&mut self, (least, most): (Duration, Duration)) -> Duration {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.rng.u64(nanos(least)..=nanos(most).max(nanos(least))))
    }

    /// Answers a packet that no open socket is there for.
    fn refuse(&mut self, flight: &Flight) {
        let (from_host, to_host) = (flight.to_host, flight.from_host);
        self.send(Flight { from: flight.to, to: flight.from, from_host, to_host, packet: Packet::Reset }, self.now);
    }

    pub fn arrive(&mut self, flight: Flight) {
        if self.is_lost(&flight) {
            self.lost(&flight);
            return;
        }
        if matches!(flight.packet, Packet::Syn) {
            self.syn(&flight);
            return;
        }
        let state = self.sockets.get(&flight.to).map_or(State::Closed, |socket| socket.state);
        if state == State::Closed || state == State::Listening {
            self.stray(&flight);
            return;
        }
        let now = self.now;
        if let Some(socket) = self.sockets.get_mut(&flight.to) {
            socket.heard = now;
            // It is known when a packet of the peer arrives which socket it is.
            if flight.from != 0 && !matches!(flight.packet, Packet::Reset) {
                socket.peer = Some(flight.from);
            }
        }
        match flight.packet {
            Packet::Syn => {}
            Packet::SynAck => self.syn_ack(flight.to),
            Packet::Reset => self.reset_arrived(flight.to),
            Packet::Ack { upto, edge } => {
                self.establish(flight.to);
                self.acknowledged(flight.to, upto, edge);
            }
            Packet::Data { at, bytes, fin } => {
                self.establish(flight.to);
                self.data(flight.to, at, &bytes, fin);
            }
        }
    }

    /// A packet to a connection that is over.
    fn stray(&mut self, flight: &Flight) {
        match &flight.packet {
            Packet::Data { at, bytes, fin: true } if bytes.is_empty() && self.time_wait.contains_key(&flight.to) => {
                let ack = Packet::Ack { upto: at + 1, edge: at + 1 };
                let (from_host, to_host) = (flight.to_host, flight.from_host);
                self.send(Flight { from: flight.to, to: flight.from, from_host, to_host, packet: ack }, self.now);
            }
            Packet::Data { .. } | Packet::SynAck => self.refuse(flight),
            // Acknowledgements cross with the end of a connection, in the order of things.
            Packet::Ack { .. } | Packet::Reset | Packet::Syn => {}
        }
    }

    fn syn(&mut self, flight: &Flight) {
        let Some(client) = self.sockets.get(&flight.from) else { return };
        let (Some(from), Some(to)) = (client.local, client.remote) else { return };
        if let Some(embryo) = client.peer.or_else(|| self.embryo_of(flight.from)) {
            // Its answer was lost.
            if self.sockets.contains_key(&embryo) {
                self.launch(embryo, Packet::SynAck);
                return;
            }
        }
        let hears = |socket: &Socket| {
            socket.state == State::Listening
                && socket.host == flight.to_host
                && socket.local.is_some_and(|local| {
                    local.port() == to.port() && (local.ip().is_unspecified() || local.ip() == to.ip())
                })
        };
        let Some((&listener, found)) = self.sockets.iter().find(|(_, socket)| hears(socket)) else {
            self.refuse(flight);
            return;
        };
        let embryos = self.sockets.values().filter(|socket| socket.listener == Some(listener)).count();
        if embryos > found.backlog {
            self.say(|_| format!("{from} > {to}: the backlog is full"));
            self.mark_stalled(flight.from);
            return;
        }
        let (owner, options) = (found.owner, found.options.clone());
        let Some(keys) = client.peer_keys else { return };
        let mut socket = Socket::new(owner, flight.to_host, keys);
        socket.options = super::core::Options { nonblocking: false, ..options };
        (socket.local, socket.remote, socket.peer) = (Some(to), Some(from), Some(flight.from));
        (socket.state, socket.listener) = (State::SynReceived, Some(listener));
        socket.connection = client.connection.map(|(record, _)| (record, false));
        socket.heard = self.now;
        self.open_windows(&mut socket);
        let id = self.add(socket);
        self.launch(id, Packet::SynAck);
    }

    fn embryo_of(&self, client: SocketId) -> Option<SocketId> {
        let is_it = |socket: &Socket| socket.state == State::SynReceived && socket.peer == Some(client);
        self.sockets.iter().find(|(_, socket)| is_it(socket)).map(|(id, _)| *id)
    }

    fn open_windows(&self, socket: &mut Socket) {
        socket.edge = self.settings.receive_buffer as u64;
        socket.told = self.settings.receive_buffer as u64;
    }

    fn syn_ack(&mut self, id: SocketId) {
        let Some(mut socket) = self.sockets.remove(&id) else { return };
        if socket.state == State::SynSent {
            socket.state = State::Open;
            socket.stall = None;
            self.open_windows(&mut socket);
            self.woken.push(socket.writable);
            if let Some((record, _)) = socket.connection {
                self.connections[record].established = true;
            }
        }
        let ack = Packet::Ack { upto: socket.arrived, edge: socket.told };
        self.sockets.insert(id, socket);
        self.launch(id, ack);
    }

    /// The third packet of the handshake, or what came in its place.
    fn establish(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if socket.state != State::SynReceived {
            return;
        }
        (socket.state, socket.stall) = (State::Open, None);
        if let Some(listener) = socket.listener.and_then(|listener| self.sockets.get_mut(&listener)) {
            listener.ready.push_back(id);
            self.woken.push(listener.readable);
        }
    }

    fn reset_arrived(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        let error = match socket.state {
            State::SynSent => Errno::CONNREFUSED,
            State::SynReceived => {
                self.sockets.remove(&id);
                return;
            }
            _ if socket.got_fin => Errno::PIPE,
            _ => Errno::CONNRESET,
        };
        self.say(|core| format!("{}: reset by peer", core.name_of(id)));
        self.die(id, Some(error));
    }

    /// The connection is over at this end. What has arrived can still be read.
    pub fn die(&mut self, id: SocketId, error: Option<Errno>) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.state = State::Closed;
        socket.error = error;
        (socket.shut_read, socket.shut_write) = (true, true);
        socket.sending.clear();
        (socket.stall, socket.no_room_since) = (None, None);
        if let Some((record, _)) = socket.connection {
            self.connections[record].closed.get_or_insert(self.now);
        }
        self.wake_both(id);
        if self.sockets[&id].is_orphan() {
            self.sockets.remove(&id);
        }
    }

    fn data(&mut self, id: SocketId, at: u64, bytes: &[u8], fin: bool) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let end = at + bytes.len() as u64;
        let is_new = end > socket.arrived && at <= socket.arrived && !socket.got_fin;
        if is_new && (socket.is_orphan() || socket.shut_read && socket.fin) {
            // Nobody will read it, and the peer is to know.
            self.abort(id, Some(Errno::CONNRESET));
            return;
        }
        if is_new {
            let skip = usize::try_from(socket.arrived - at).unwrap_or(usize::MAX);
            socket.received.extend(&bytes[skip..]);
            let fresh = end - socket.arrived;
            socket.arrived = end;
            self.woken.push(socket.readable);
            if let Some((record, is_client)) = socket.connection {
                self.connections[record].direction(!is_client).arrived += fresh;
            }
        }
        if fin && end == socket.arrived && !socket.got_fin {
            socket.got_fin = true;
            socket.arrived += 1;
            self.woken.push(socket.readable);
        }
        self.acknowledge(id);
        self.reap(id);
    }

    fn acknowledge(&mut self, id: SocketId) {
        let room = self.settings.receive_buffer as u64;
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.told = socket.taken + room;
        let ack = Packet::Ack { upto: socket.arrived, edge: socket.told };
        self.launch(id, ack);
    }

    /// After bytes were read: the peer is told once there is room worth speaking of.
    pub fn room_was_made(&mut self, id: SocketId) {
        let room = self.settings.receive_buffer as u64;
        let Some(socket) = self.sockets.get(&id) else { return };
        if socket.state == State::Open && !socket.got_fin && socket.taken + room >= socket.told + (room / 2).max(1) {
            self.acknowledge(id);
        }
    }

    fn acknowledged(&mut self, id: SocketId, upto: u64, edge: u64) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if upto > socket.acked {
            let bytes = upto.min(socket.written).saturating_sub(socket.acked);
            socket.sending.drain(..usize::try_from(bytes).unwrap_or(usize::MAX));
            socket.acked = upto;
            socket.next = socket.next.max(upto);
            socket.stall = None;
            self.woken.push(socket.writable);
        }
        socket.edge = socket.edge.max(edge);
        if socket.acked == socket.next && (socket.edge > socket.next || !socket.is_owed()) {
            socket.stall = None;
        }
        self.transmit(id, false);
        self.reap(id);
    }

    /// Sends what may be sent.
    pub fn transmit(&mut self, id: SocketId, again: bool) {
        loop {
            let Some(socket) = self.sockets.get(&id) else { return };
            if socket.state != State::Open || socket.stall.is_some() && !again {
                return;
            }
            let Some(to_host) = self.peer_host(socket) else { return };
            let most = self.link(socket.host, to_host).segment.max(1) as u64;
            let unsent = socket.written.saturating_sub(socket.next);
            let bytes = unsent.min(socket.edge.saturating_sub(socket.next)).min(most);
            let fin = socket.fin && socket.next + bytes == socket.written;
            if bytes == 0 && !fin {
                self.look_at_room(id, unsent > 0);
                return;
            }
            self.send_segment(id, bytes, fin);
        }
    }

    fn send_segment(&mut self, id: SocketId, bytes: u64, fin: bool) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let begin = usize::try_from(socket.next - socket.acked).unwrap_or(usize::MAX);
        let end = begin + usize::try_from(bytes).unwrap_or(usize::MAX);
        let payload = socket.sending.range(begin..end).copied().collect();
        let packet = Packet::Data { at: socket.next, bytes: payload, fin };
        socket.next += bytes + u64::from(fin);
        socket.no_room_since = None;
        if let Some((record, is_client)) = socket.connection {
            self.connections[record].direction(is_client).on_the_wire += bytes;
        }
        self.launch(id, packet);
    }
}
