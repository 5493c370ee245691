//! A connection in the extension, from the answer to its end: three threads around one socket.
//!
//! The reader (`session`) applies; `paceline-ack` (`report`) writes and watches for silence; `paceline-disk` (`disk`) reads for
//! the inventory and flushes. The reader starts the other two and outlives them. Whichever fails first says why, and the
//! socket is shut down for reading, which ends all three. If it was a file or the disk that failed, the leader is told.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::connection::bound_unanswered;
use super::contact::{Limit, id_to_tell, standing};
use super::disk::{Jobs, Worker};
use super::flush::Unflushed;
use super::negotiate::{Introduction, introduce};
use super::report::{Report, Speaker, Watched};
use super::run::Runner;
use super::session::{Parts, Session};
use super::status::State;
use super::track::Track;
use crate::error::Error;
use crate::protocol::extension::{Message, chunks_max};
use crate::protocol::frame_reader;
use crate::sys::channel::{self, Receiver};
use crate::sys::net::{Shutdown, SocketAddr, TcpStream};
use crate::sys::random;
use crate::sys::time::Instant;

/// The longest that a leader can send a follower away for.
const AWAY_MAX: Duration = Duration::from_secs(600);

/// How long a leader has to take a farewell, and to close after it.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

impl Runner {
    /// The rest of a connection whose leader has chosen the extension. `Ok`: a sync was all that was asked for, and it is done.
    pub(super) fn extended(&mut self, socket: TcpStream, address: SocketAddr, in_sync: &mut bool) -> Result<(), Error> {
        let told = id_to_tell(&self.data, self.config.adopt)?;
        let leader = introduce(&socket, &self.config, self.data.id(), told)?;
        let standing = standing(&self.data, &self.config, leader.data_set)?;
        log::info!("connected to the leader at {address}");
        self.greet(&leader);
        if leader.silence.is_none() {
            bound_unanswered(&socket)?;
        }
        let threads = Threads::start(self, Arc::new(socket), &leader)?;
        // Until it is known better.
        let unflushed = std::mem::replace(&mut self.unflushed, Unflushed::all());
        let keep = self.keep();
        let parts = Parts {
            data: &mut self.data,
            limit: Limit { standing, max_delete: self.config.max_delete },
            theirs: leader.data_set,
            term: leader.term,
            once: self.config.once,
            keep,
            digests: &self.digests,
            shared: &self.shared,
            report: &threads.report,
            jobs: &threads.jobs,
        };
        let mut session = Session::new(parts, &self.dir, Track::new(self.digests.clone(), unflushed));
        let result = session.run(&mut frame_reader(Watched(&*threads.socket, &threads.report)));
        let (goodbye, mut left) = session.end();
        if let Some(back_in_ms) = goodbye {
            self.away = Some(away(back_in_ms));
        }
        let jobs = threads.jobs.clone();
        let result = threads.end(result, goodbye.is_some());
        *in_sync = jobs.synced();
        left.merge(jobs.left());
        self.unflushed = left;
        result
    }

    fn greet(&self, leader: &Introduction) {
        if let Some(reason) = &leader.last_eviction {
            log::warn!("the leader let this follower go before: {reason}");
        }
        if let Some(admitted_in) = leader.admitted_in {
            log::info!("the leader will admit this follower to a sync in {admitted_in:.1?}");
        }
        self.shared.update_with_lag(None, |status| {
            status.state = State::Waiting;
            status.connections += 1;
            (status.applied_bytes, status.acknowledged_bytes, status.durable_bytes) = (0, 0, 0);
            (status.admitted_in, status.leader_files) = (leader.admitted_in, None);
            if leader.last_eviction.is_some() {
                status.last_eviction.clone_from(&leader.last_eviction);
            }
        });
    }
}

/// How long to stay away: at least as long as was asked for, and up to a quarter longer, by chance.
fn away(back_in_ms: u32) -> Duration {
    let asked = Duration::from_millis(back_in_ms.into()).min(AWAY_MAX);
    asked + asked.mul_f64(random::f64() / 4.0)
}

/// The threads of a connection, as its reader holds them.
struct Threads {
    socket: Arc<TcpStream>,
    report: Arc<Report>,
    jobs: Arc<Jobs>,
    /// Disconnected when the thread has ended: the one that writes, the one that works on the disk.
    ended: Vec<Receiver<()>>,
}

impl Threads {
    fn start(runner: &Runner, socket: Arc<TcpStream>, leader: &Introduction) -> Result<Self, Error> {
        let (report, jobs) = (Arc::new(Report::default()), Arc::new(Jobs::default()));
        let mut started = Self { socket, report, jobs, ended: Vec::new() };
        let (socket, report, shared) = (started.socket.clone(), started.report.clone(), runner.shared.clone());
        let (interval, silence) = (leader.interval, leader.silence);
        started.spawn(runner, "paceline-ack", move || {
            Speaker { report: &report, socket: &socket, shared: &shared, interval, silence }.run();
        })?;
        let worker = Worker {
            jobs: started.jobs.clone(),
            dir: runner.dir.clone(),
            digests: runner.digests.clone(),
            report: started.report.clone(),
            shared: runner.shared.clone(),
            chunks_max: chunks_max(),
        };
        started.spawn(runner, "paceline-disk", move || worker.run())?;
        Ok(started)
    }

    fn spawn(
        &mut self,
        runner: &Runner,
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let (running, ended) = channel::bounded(0);
        let socket = self.socket.clone();
        let spawned = runner.threads.spawn(name, move || {
            let _running = running;
            // Whoever reads has to hear of a failure, or of a panic. Without one it has ended already.
            let _socket = ShutAtEnd(socket);
            body();
        });
        spawned.map_err(|error| Error::connection("could not start its thread", error))?;
        self.ended.push(ended);
        Ok(())
    }

    /// Ends the threads and the connection, and says why that was: what a thread failed at is what the reader saw as a close.
    fn end(self, result: Result<(), Error>, goodbye: bool) -> Result<(), Error> {
        if result.is_ok() {
            // The last marks may still have to be written.
            self.report.finish();
            let _ = self.ended[0].recv();
        }
        // After this nobody fails any more.
        self.join();
        let result = match (result, self.report.failure()) {
            (Err(Error::Connection { .. }), Some(failure)) if !goodbye => Err(failure),
            (result, _) => result,
        };
        if let Err(error @ Error::Io { .. }) = &result
            && self.report.is_whole()
        {
            // It is also in our own log: nothing depends on its arrival.
            let _ = say_farewell(&self.socket, &error.to_string());
        }
        result
    }

    fn join(&self) {
        self.report.close();
        self.jobs.close();
        // What is still to be said is said after that.
        let _ = self.socket.shutdown(Shutdown::Read);
        for ended in &self.ended {
            // Disconnected: its end is all there is to wait for.
            let _ = ended.recv();
        }
    }
}

/// The threads end also when the reader's panicked.
impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        self.join();
    }
}

/// Tells the leader why, and waits a moment for it to close: what it sends meanwhile is read, because a connection that is
/// closed with something unread is reset, and a reset may overtake what was said.
pub(super) fn say_farewell(mut socket: &TcpStream, why: &str) -> io::Result<()> {
    let mut wire = Vec::new();
    Message::Farewell(why.to_owned()).encode(&mut wire);
    socket.set_write_timeout(Some(FAREWELL_MAX))?;
    socket.write_all(&wire)?;
    socket.shutdown(Shutdown::Write)?;
    socket.set_read_timeout(Some(FAREWELL_MAX))?;
    let (mut buffer, until) = (vec![0; 64 << 10], Instant::now() + FAREWELL_MAX);
    while Instant::now() < until && socket.read(&mut buffer)? > 0 {}
    Ok(())
}

pub(super) struct ShutAtEnd(pub(super) Arc<TcpStream>);

impl Drop for ShutAtEnd {
    fn drop(&mut self) {
        // The other direction is for a farewell.
        let _ = self.0.shutdown(Shutdown::Read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_comes_back_early_nor_stays_away_for_ever() {
        for _ in 0..100 {
            let (soon, never) = (away(1000), away(u32::MAX));
            assert!(soon >= Duration::from_secs(1) && soon <= Duration::from_millis(1250), "{soon:?}");
            assert!(never >= AWAY_MAX && never <= AWAY_MAX * 5 / 4, "{never:?}");
        }
    }
}
