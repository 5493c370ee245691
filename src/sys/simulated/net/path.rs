//! What gets lost on the way, and how an end finds that out: by sending again, and by keepalive.
//!
//! No timer runs that changes nothing: the end of a connection is planned when its path goes down, and a packet is sent again when the
//! path is back, at the time at which Linux would have done it.

use std::net::IpAddr;
use std::time::Duration;

use ::rustix::io::Errno;

use super::core::{Core, Event, Flight, Packet, Socket, SocketId, State};
use super::driver::Link;

/// Something that was sent is lost.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Stall {
    pub since: Duration,
    pub retry_at: Option<Duration>,
}

impl Core {
    pub fn link(&self, from: IpAddr, to: IpAddr) -> Link {
        let otherwise = if from == to { self.settings.local_link } else { self.settings.link };
        self.links.get(&(from, to)).copied().unwrap_or(otherwise)
    }

    /// Whether a packet from here to there arrives.
    fn is_up(&self, from: IpAddr, to: IpAddr) -> bool {
        let exists = |host: IpAddr| host.is_loopback() || self.hosts.values().any(|known| *known == host);
        let on = |host: IpAddr| !self.off.contains(&host);
        exists(to) && on(from) && on(to) && !self.link(from, to).cut
    }

    pub fn is_lost(&self, flight: &Flight) -> bool {
        let forgotten = |id| self.sockets.get(&id).is_some_and(|socket| socket.forgotten);
        !self.is_up(flight.from_host, flight.to_host) || forgotten(flight.from) || forgotten(flight.to)
    }

    /// Both ways.
    fn path_is_up(&self, socket: &Socket) -> bool {
        let Some(peer) = self.peer_host(socket) else { return false };
        !socket.forgotten && self.is_up(socket.host, peer) && self.is_up(peer, socket.host)
    }

    pub fn lost(&mut self, flight: &Flight) {
        match flight.packet {
            Packet::Syn | Packet::Data { .. } => self.mark_stalled(flight.from),
            Packet::SynAck => {
                self.mark_stalled(flight.from);
                self.mark_stalled(flight.to);
            }
            Packet::Ack { .. } => {
                let waits = |socket: &Socket| socket.is_owed() || socket.state == State::SynReceived;
                if self.sockets.get(&flight.to).is_some_and(waits) {
                    self.mark_stalled(flight.to);
                }
            }
            Packet::Reset => {}
        }
    }

    pub fn mark_stalled(&mut self, id: SocketId) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if matches!(socket.state, State::Closed | State::Listening) {
            return;
        }
        if socket.stall.is_none() {
            socket.stall = Some(Stall { since: now, retry_at: None });
            self.plan_end(id);
        }
        self.plan_retry(id);
    }

    /// How long nothing of what was sent may be acknowledged.
    fn patience(&self, socket: &Socket) -> Duration {
        match socket.state {
            State::SynSent => socket.options.user_timeout.unwrap_or(self.settings.connect_max),
            State::SynReceived => self.settings.handshake_max,
            _ => socket.options.user_timeout.unwrap_or(self.settings.retransmission_max),
        }
    }

    /// Plans when an end that waits for an acknowledgement gives up; called again when the timeout is set.
    pub fn plan_end(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        let stalled = socket.stall.map(|stall| stall.since + self.patience(socket));
        let no_room = socket.no_room_since.zip(socket.options.user_timeout).map(|(since, most)| since + most);
        for at in [stalled, no_room].into_iter().flatten() {
            self.at(at.max(self.now), Event::GiveUp(id));
        }
    }

    pub fn give_up(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        let late = socket.stall.is_some_and(|stall| self.now >= stall.since + self.patience(socket));
        let no_room = socket.no_room_since.zip(socket.options.user_timeout);
        if !late && no_room.is_none_or(|(since, most)| self.now < since + most) {
            return;
        }
        self.say(|core| format!("{}: gives up, nothing is acknowledged", core.name_of(id)));
        if self.sockets[&id].state == State::SynReceived {
            self.sockets.remove(&id);
        } else {
            self.die(id, Some(Errno::TIMEDOUT));
        }
    }

    /// A packet is sent again after pauses that double; those before now found the path down.
    fn plan_retry(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        let Some(Stall { since, retry_at: None }) = socket.stall else { return };
        if !self.path_is_up(socket) {
            return;
        }
        let first = if socket.state == State::Open { self.settings.retry_first } else { Duration::from_secs(1) };
        let (mut pause, mut at) = (first, since + first);
        while at <= self.now {
            pause = (pause * 2).min(self.settings.retry_max.max(first));
            at += pause;
        }
        if let Some(stall) = self.sockets.get_mut(&id).and_then(|socket| socket.stall.as_mut()) {
            stall.retry_at = Some(at);
        }
        self.at(at, Event::Retransmit(id));
    }

    pub fn retransmit(&mut self, id: SocketId) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let Some(stall) = &mut socket.stall else { return };
        if stall.retry_at != Some(now) {
            return;
        }
        stall.retry_at = None;
        match socket.state {
            State::SynSent => self.launch(id, Packet::Syn),
            State::SynReceived => self.launch(id, Packet::SynAck),
            State::Open => {
                socket.next = socket.acked;
                let before = socket.next;
                self.transmit(id, true);
                if self.sockets.get(&id).is_some_and(|socket| socket.next == before && socket.is_owed()) {
                    self.send_probe(id);
                }
            }
            State::Closed | State::Listening => {}
        }
    }

    fn send_probe(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        let probe = Packet::Data { at: socket.next, bytes: Vec::new(), fin: false };
        self.launch(id, probe);
    }

    /// There is nothing to send, or no room for it at the peer.
    pub fn look_at_room(&mut self, id: SocketId, is_waiting: bool) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if !is_waiting || socket.next > socket.acked {
            socket.no_room_since = None;
            return;
        }
        if socket.no_room_since.is_none() {
            socket.no_room_since = Some(now);
            self.plan_end(id);
        }
        if self.sockets.get(&id).is_some_and(|socket| !self.path_is_up(socket)) {
            // Probes for room would find that out.
            self.mark_stalled(id);
        }
    }

    /// The first moment that keepalive would probe at after now, and when it gives up if there is no answer.
    fn keepalive_times(&self, socket: &Socket) -> (Duration, Duration) {
        let keepalive = socket.options.keepalive;
        let (idle, interval) = (keepalive.time.max(Duration::from_secs(1)), keepalive.interval);
        let mut heard = socket.heard;
        while heard + idle <= self.now {
            heard += idle;
        }
        let first = heard + idle;
        let retries = match socket.options.user_timeout {
            Some(most) => (1..10_000).find(|n| idle + interval * *n >= most).unwrap_or(keepalive.retries),
            None => keepalive.retries,
        };
        (first, first + interval * retries)
    }

    /// The path may have gone down: plans how this end finds out.
    pub fn path_went_down(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        if self.path_is_up(socket) || socket.state != State::Open {
            return;
        }
        // What is under way is lost when it should arrive.
        if socket.is_owed() && socket.next == socket.acked {
            self.mark_stalled(id);
        }
        self.plan_keepalive(id);
    }

    /// Called when the path went down, and when keepalive is set.
    pub fn plan_keepalive(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(&id) else { return };
        if socket.state == State::Open && socket.options.keeps_alive && !self.path_is_up(socket) {
            let (_, end) = self.keepalive_times(socket);
            self.at(end, Event::KeepaliveEnds(id, socket.path_generation));
        }
    }

    pub fn keepalive_ends(&mut self, id: SocketId, generation: u64) {
        let Some(socket) = self.sockets.get(&id) else { return };
        if socket.state != State::Open || socket.path_generation != generation || !socket.options.keeps_alive {
            return;
        }
        // With something under way it is not keepalive's business.
        if socket.is_owed() || self.path_is_up(socket) {
            return;
        }
        self.say(|core| format!("{}: keepalive is not answered", core.name_of(id)));
        self.die(id, Some(Errno::TIMEDOUT));
    }

    /// The path may be back: what was lost is sent again, and keepalive finds out whether the peer still knows the connection.
    pub fn path_came_back(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.path_generation += 1;
        let socket = &self.sockets[&id];
        if !self.path_is_up(socket) {
            self.path_went_down(id);
            return;
        }
        if socket.stall.is_some() {
            self.plan_retry(id);
        } else if socket.state == State::Open && socket.options.keeps_alive {
            let (first, _) = self.keepalive_times(socket);
            let probe = Event::Probe(id, socket.path_generation);
            self.at(first, probe);
        }
    }

    pub fn probe(&mut self, id: SocketId, generation: u64) {
        let alive = |socket: &Socket| socket.state == State::Open && socket.path_generation == generation;
        if self.sockets.get(&id).is_some_and(alive) {
            self.send_probe(id);
        }
    }
}
