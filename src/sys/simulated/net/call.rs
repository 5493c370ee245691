//! System calls on sockets.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use ::rustix::io::Errno;

use super::super::world::{self, Key, What, World};
use super::core::{Core, Options, Socket, SocketId, State};

/// A file descriptor of a socket: closed when it is dropped. A killed process drops nothing.
#[derive(Debug)]
pub(in super::super) struct Descriptor {
    id: SocketId,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if !world::is_inside() {
            return;
        }
        world::step();
        let world = world::current();
        let process = world.process();
        world.network.act(|core| {
            core.close_descriptor(process);
            let Some(socket) = core.sockets.get_mut(&self.id) else { return };
            socket.handles = socket.handles.saturating_sub(1);
            if socket.handles == 0 {
                core.close(self.id);
            }
        });
    }
}

/// A scheduling point at the head of a call, and the error the world has in store for it.
fn enter(call: &'static str) -> io::Result<std::sync::Arc<World>> {
    world::step();
    let world = world::current();
    world.may_fail(call)?;
    Ok(world)
}

/// How a call ends that may have to wait.
type Step<T> = Option<Result<T, Errno>>;

impl Descriptor {
    pub fn socket() -> io::Result<Self> {
        let world = enter("socket")?;
        let (process, keys) = (world.process(), (world.new_key(), world.new_key()));
        let made = world.network.act(|core| {
            core.open_descriptor(process)?;
            let mut socket = Socket::new(process, core.host_of(process), keys);
            socket.handles = 1;
            Ok::<_, Errno>(core.add(socket))
        });
        Ok(Self { id: made? })
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        let world = enter("fcntl")?;
        let process = world.process();
        world.network.act(|core| {
            core.open_descriptor(process)?;
            if let Some(socket) = core.sockets.get_mut(&self.id) {
                socket.handles += 1;
            }
            Ok::<_, Errno>(())
        })?;
        Ok(Self { id: self.id })
    }

    fn act<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        world::current().network.act(act)
    }

    /// No system call: looks at the socket.
    pub fn look<R>(&self, look: impl FnOnce(&Socket) -> R) -> io::Result<R> {
        self.act(|core| core.sockets.get(&self.id).map(look)).ok_or_else(|| Errno::BADF.into())
    }

    /// `setsockopt` and the like.
    pub fn set(&self, set: impl FnOnce(&mut Options)) -> io::Result<()> {
        let world = enter("setsockopt")?;
        world.network.act(|core| {
            let socket = core.sockets.get_mut(&self.id).ok_or(Errno::BADF)?;
            set(&mut socket.options);
            core.plan_end(self.id);
            core.plan_keepalive(self.id);
            Ok::<_, Errno>(())
        })?;
        Ok(())
    }

    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.act(|core| core.sockets.get_mut(&self.id)?.error.take()).map(io::Error::from))
    }

    pub fn bind(&self, address: SocketAddr) -> io::Result<()> {
        Ok(enter("bind")?.network.act(|core| core.bind(self.id, address))?)
    }

    pub fn listen(&self, backlog: usize) -> io::Result<()> {
        Ok(enter("listen")?.network.act(|core| core.listen(self.id, backlog))?)
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let world = enter("shutdown")?;
        let (read, write) = (how != Shutdown::Write, how != Shutdown::Read);
        Ok(world.network.act(|core| {
            core.say(|core| format!("{}: shuts down {how:?}", core.name_of(self.id)));
            core.shutdown(self.id, read, write)
        })?)
    }

    /// Tries a call until it ends; a socket that does not block tries once. `timeout` says which one is the socket's.
    #[track_caller]
    fn attempt<T>(
        &self,
        call: &'static str,
        key: fn(&Socket) -> Key,
        timeout: fn(&Options) -> Option<Duration>,
        mut attempt: impl FnMut(&mut Core) -> Step<T>,
    ) -> io::Result<T> {
        let world = world::current();
        world.may_fail(call)?;
        let (key, options) = self.look(|socket| (key(socket), socket.options.clone()))?;
        let mut once = || world.network.act(&mut attempt);
        let done = if options.nonblocking {
            world::step();
            once()
        } else {
            let deadline = timeout(&options).map(|timeout| world.now().saturating_add(timeout));
            world::wait(What::Socket, &[key], deadline, once)
        };
        Ok(done.unwrap_or(Err(Errno::AGAIN))?)
    }

    /// `at_most` is the program's own limit, as `connect_timeout` has it, which polls.
    #[track_caller]
    pub fn connect(&self, address: SocketAddr, at_most: Option<Duration>) -> io::Result<()> {
        let world = enter("connect")?;
        let peer_keys = (world.new_key(), world.new_key());
        world.network.act(|core| core.connect(self.id, address, peer_keys))?;
        let (key, options, hung_up) =
            self.look(|socket| (socket.writable, socket.options.clone(), socket.shut_read && socket.shut_write))?;
        if at_most.is_some() && hung_up {
            return Err(io::Error::other("no error set after POLLHUP"));
        }
        if options.nonblocking && at_most.is_none() {
            return Err(Errno::INPROGRESS.into());
        }
        let timeout = at_most.or(options.write_timeout);
        let deadline = timeout.map(|timeout| world.now().saturating_add(timeout));
        let done = world::wait(What::Socket, &[key], deadline, || {
            self.act(|core| {
                let socket = core.sockets.get_mut(&self.id)?;
                match socket.state {
                    State::SynSent => None,
                    State::Open => Some(Ok(())),
                    // It may be over already.
                    _ => Some(socket.error.take().map_or(Ok(()), Err)),
                }
            })
        });
        match done {
            Some(done) => Ok(done?),
            None if at_most.is_some() => Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out")),
            None => Err(Errno::INPROGRESS.into()),
        }
    }

    #[track_caller]
    pub fn accept(&self) -> io::Result<(Self, SocketAddr)> {
        let process = world::current().process();
        let (id, address) = self.attempt(
            "accept4",
            |socket| socket.readable,
            |options| options.read_timeout,
            |core| accept(core, self.id, process),
        )?;
        Ok((Self { id }, address))
    }

    #[track_caller]
    pub fn read(&self, buffers: &mut [io::IoSliceMut<'_>], peek: bool) -> io::Result<usize> {
        self.attempt(
            "recvfrom",
            |socket| socket.readable,
            |options| options.read_timeout,
            |core| read(core, self.id, buffers, peek),
        )
    }

    /// A socket that blocks takes all, unless its timeout passes.
    #[track_caller]
    pub fn write(&self, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let mut done = 0;
        let mut is_full = false;
        let nonblocking = self.look(|socket| socket.options.nonblocking)?;
        let written = self.attempt(
            "sendto",
            |socket| socket.writable,
            |options| options.write_timeout,
            |core| match write(core, self.id, buffers, done, is_full) {
                Ok(bytes) => {
                    (done, is_full) = (done + bytes, true);
                    (done == total || nonblocking && done > 0).then_some(Ok(()))
                }
                Err(error) => Some(Err(error)),
            },
        );
        match written {
            Ok(()) => Ok(done),
            Err(_) if done > 0 => Ok(done),
            Err(error) => Err(error),
        }
    }
}

fn accept(core: &mut Core, id: SocketId, process: world::ProcessId) -> Step<(SocketId, SocketAddr)> {
    let socket = core.sockets.get(&id)?;
    if socket.state != State::Listening {
        return Some(Err(Errno::INVAL));
    }
    if socket.ready.is_empty() {
        return None;
    }
    if let Err(error) = core.open_descriptor(process) {
        return Some(Err(error));
    }
    let accepted = core.sockets.get_mut(&id)?.ready.pop_front()?;
    let socket = core.sockets.get_mut(&accepted)?;
    (socket.owner, socket.handles, socket.listener) = (process, 1, None);
    let address = socket.remote?;
    core.say(|core| format!("{}: accepted", core.name_of(accepted)));
    Some(Ok((accepted, address)))
}

fn read(core: &mut Core, id: SocketId, buffers: &mut [io::IoSliceMut<'_>], peek: bool) -> Step<usize> {
    let socket = core.sockets.get_mut(&id)?;
    if buffers.iter().all(|buffer| buffer.is_empty()) {
        return Some(Ok(0));
    }
    if socket.received.is_empty() {
        return match socket.state {
            State::Listening => Some(Err(Errno::NOTCONN)),
            _ if socket.got_fin => Some(Ok(0)),
            _ if socket.error.is_some() => socket.error.take().map(Err),
            _ if socket.shut_read => Some(Ok(0)),
            State::Closed => Some(Err(Errno::NOTCONN)),
            _ => None,
        };
    }
    let mut bytes = 0;
    for buffer in buffers {
        let more = buffer.len().min(socket.received.len() - bytes);
        for (to, from) in buffer.iter_mut().zip(socket.received.range(bytes..bytes + more)) {
            *to = *from;
        }
        bytes += more;
    }
    if !peek {
        socket.received.drain(..bytes);
        socket.taken += bytes as u64;
        if let Some((record, is_client)) = socket.connection {
            core.connections[record].direction(!is_client).read += bytes as u64;
        }
        core.room_was_made(id);
        if bytes <= core.settings.trace_bytes {
            core.say(|core| format!("{}: reads {bytes} bytes", core.name_of(id)));
        }
    }
    Some(Ok(bytes))
}

/// Takes what there is room for; once it was full, only when a third is free.
fn write(
    core: &mut Core,
    id: SocketId,
    buffers: &[io::IoSlice<'_>],
    skip: usize,
    is_full: bool,
) -> Result<usize, Errno> {
    let limit = core.settings.send_buffer.max(1);
    let socket = core.sockets.get_mut(&id).ok_or(Errno::BADF)?;
    // What was taken before is told first, and the error by the next call.
    let error = if skip > 0 { socket.error } else { socket.error.take() };
    if let Some(error) = error {
        return Err(error);
    }
    if socket.shut_write || !matches!(socket.state, State::Open | State::SynSent) {
        return Err(Errno::PIPE);
    }
    let room = limit.saturating_sub(socket.sending.len());
    if socket.state == State::SynSent || room == 0 || is_full && room < limit.div_ceil(3) {
        return Ok(0);
    }
    let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter()).skip(skip).take(room).copied().collect();
    socket.sending.extend(&bytes);
    socket.written += bytes.len() as u64;
    if let Some((record, is_client)) = socket.connection {
        core.connections[record].direction(is_client).written += bytes.len() as u64;
    }
    core.transmit(id, false);
    if bytes.len() <= core.settings.trace_bytes {
        core.say(|core| format!("{}: writes {} bytes", core.name_of(id), bytes.len()));
    }
    Ok(bytes.len())
}
