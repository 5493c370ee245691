//! Files and folders, as `rustix::fs` has them.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::time::Duration;

pub use ::rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RawMode, RenameFlags, ResolveFlags, SeekFrom, StatVfs,
    StatVfsMountFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT, major, makedev, minor,
};
use ::rustix::io::{Errno, Result};
use ::rustix::path::Arg;

use super::super::disk::{self, How, Looks, State, Stop, SyncKind};
use super::super::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use super::super::world::{self, ProcessId};

#[path = "inotify.rs"]
pub mod inotify;

/// The current folder, in place of a descriptor: `/` for all processes.
pub const CWD: BorrowedFd<'static> = BorrowedFd::CWD;

/// As [`::rustix::fs::Stat`].
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub st_dev: u64,
    pub st_ino: u64,
    pub st_nlink: u64,
    pub st_mode: u32,
    pub st_uid: u32,
    pub st_gid: u32,
    pub st_size: i64,
    pub st_blocks: i64,
    pub st_mtime: i64,
    pub st_mtime_nsec: u64,
    pub st_ctime: i64,
    pub st_ctime_nsec: u64,
}

/// As [`::rustix::fs::Statx`]: what is used of it.
#[derive(Clone, Copy, Debug)]
pub struct Statx {
    pub stx_mask: u32,
    pub stx_mode: u16,
    pub stx_uid: u32,
    pub stx_gid: u32,
    pub stx_ino: u64,
    pub stx_size: u64,
    pub stx_btime: StatxTimestamp,
    pub stx_ctime: StatxTimestamp,
    pub stx_mtime: StatxTimestamp,
    pub stx_dev_major: u32,
    pub stx_dev_minor: u32,
    pub stx_mnt_id: u64,
}

/// As [`::rustix::fs::StatxTimestamp`].
#[derive(Clone, Copy, Debug)]
pub struct StatxTimestamp {
    pub tv_sec: i64,
    pub tv_nsec: u32,
}

impl StatxTimestamp {
    fn of(time: Duration) -> Self {
        Self { tv_sec: seconds(time), tv_nsec: time.subsec_nanos() }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds(time: Duration) -> i64 {
    signed(time.as_secs())
}

impl Stat {
    fn of(looks: Looks) -> Self {
        Self {
            st_dev: makedev(looks.dev.0, looks.dev.1),
            st_ino: looks.number,
            st_nlink: looks.links.into(),
            st_mode: looks.mode,
            st_uid: looks.owner.0,
            st_gid: looks.owner.1,
            st_size: signed(looks.size),
            st_blocks: signed(looks.allocated / 512),
            st_mtime: seconds(looks.modified),
            st_mtime_nsec: looks.modified.subsec_nanos().into(),
            st_ctime: seconds(looks.changed),
            st_ctime_nsec: looks.changed.subsec_nanos().into(),
        }
    }
}

fn number(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// A call with a path: its bytes, and what the trace shows of it.
#[track_caller]
fn call_at<T>(
    name: &'static str,
    path: impl Arg,
    mut body: impl FnMut(&mut State, ProcessId, &[u8]) -> std::result::Result<T, Stop>,
) -> Result<T> {
    let path = path.into_c_str()?;
    let bytes = path.to_bytes();
    disk::call(name, |_| String::from_utf8_lossy(bytes).into_owned(), |state, who| body(state, who, bytes))
}

#[track_caller]
fn call_on<T>(
    name: &'static str,
    fd: &impl AsFd,
    mut body: impl FnMut(&mut State, ProcessId, i32) -> std::result::Result<T, Stop>,
) -> Result<T> {
    let (number, me) = (number(fd), world::current().process());
    disk::call(name, |state| state.shown(me, number), |state, who| body(state, who, number))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn open(path: impl Arg, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    openat(CWD, path, flags, mode)
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn openat(at: impl AsFd, path: impl Arg, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let (at, mode) = (number(&at), mode.as_raw_mode());
    let opened = call_at("openat", path, |state, who, path| state.openat(who, at, path, flags, mode, How::FOLLOW));
    Ok(OwnedFd::own(opened?))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn openat2(at: impl AsFd, path: impl Arg, flags: OFlags, mode: Mode, resolve: ResolveFlags) -> Result<OwnedFd> {
    let allowed = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path_only = flags.contains(OFlags::PATH) && !allowed.contains(flags);
    let no_file = !flags.intersects(OFlags::CREATE | (OFlags::TMPFILE & !OFlags::DIRECTORY)) && !mode.is_empty();
    let (at, mode) = (number(&at), mode.as_raw_mode());
    let how = How {
        follow: true,
        beneath: resolve.contains(ResolveFlags::BENEATH),
        in_root: resolve.contains(ResolveFlags::IN_ROOT),
        no_links: resolve.contains(ResolveFlags::NO_SYMLINKS),
        makes_file: false,
        one_mount: resolve.contains(ResolveFlags::NO_XDEV),
    };
    let opened = call_at("openat2", path, |state, who, path| {
        if path_only || no_file || how.beneath && how.in_root {
            return Err(Errno::INVAL.into());
        }
        state.openat(who, at, path, flags, mode, how)
    });
    Ok(OwnedFd::own(opened?))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn fstat(fd: impl AsFd) -> Result<Stat> {
    call_on("fstat", &fd, |state, who, number| state.fstat(who, number)).map(Stat::of)
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn stat(path: impl Arg) -> Result<Stat> {
    statat(CWD, path, AtFlags::empty())
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn lstat(path: impl Arg) -> Result<Stat> {
    statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

#[track_caller]
fn look(name: &'static str, at: &impl AsFd, path: impl Arg, flags: AtFlags) -> Result<Looks> {
    let at = number(at);
    let how = (!flags.contains(AtFlags::SYMLINK_NOFOLLOW), flags.contains(AtFlags::EMPTY_PATH));
    call_at(name, path, |state, who, path| state.statat(who, at, path, how))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn statat(at: impl AsFd, path: impl Arg, flags: AtFlags) -> Result<Stat> {
    look("newfstatat", &at, path, flags).map(Stat::of)
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn statx(at: impl AsFd, path: impl Arg, flags: AtFlags, _: StatxFlags) -> Result<Statx> {
    let looks = look("statx", &at, path, flags)?;
    Ok(Statx {
        stx_mask: StatxFlags::all().bits(),
        stx_mode: u16::try_from(looks.mode).unwrap_or_default(),
        stx_uid: looks.owner.0,
        stx_gid: looks.owner.1,
        stx_ino: looks.number,
        stx_size: looks.size,
        stx_btime: StatxTimestamp::of(looks.born),
        stx_ctime: StatxTimestamp::of(looks.changed),
        stx_mtime: StatxTimestamp::of(looks.modified),
        stx_dev_major: looks.dev.0,
        stx_dev_minor: looks.dev.1,
        stx_mnt_id: looks.mount,
    })
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn statvfs(path: impl Arg) -> Result<StatVfs> {
    let (all, free) = call_at("statfs", path, |state, who, path| state.statvfs(who, path))?;
    let block = 4096;
    Ok(StatVfs {
        f_bsize: block,
        f_frsize: block,
        f_blocks: all / block,
        f_bfree: free / block,
        f_bavail: free / block,
        f_files: 1 << 20,
        f_ffree: 1 << 19,
        f_favail: 1 << 19,
        f_fsid: 0,
        f_flag: StatVfsMountFlags::empty(),
        f_namemax: 255,
    })
}

/// As [`::rustix::fs::StatFs`]: what is used of it.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    pub f_type: i64,
}

/// Every disk is ext4, as far as names go.
///
/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn fstatfs(fd: impl AsFd) -> Result<StatFs> {
    call_on("fstatfs", &fd, |state, who, number| state.fstat(who, number)).map(|_| StatFs { f_type: 0xef53 })
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn mkdirat(at: impl AsFd, path: impl Arg, mode: Mode) -> Result<()> {
    let (at, mode) = (number(&at), mode.as_raw_mode());
    call_at("mkdirat", path, |state, who, path| state.mkdirat(who, at, path, mode))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn mkfifoat(at: impl AsFd, path: impl Arg, mode: Mode) -> Result<()> {
    let (at, mode) = (number(&at), mode.as_raw_mode());
    call_at("mknodat", path, |state, who, path| state.mkfifoat(who, at, path, mode))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn symlinkat(to: impl Arg, at: impl AsFd, path: impl Arg) -> Result<()> {
    let (to, at) = (to.into_c_str()?, number(&at));
    call_at("symlinkat", path, |state, who, path| state.symlinkat(who, to.to_bytes(), at, path))
}

/// # Errors
///
/// As of the system call.
///
/// # Panics
///
/// Never: no link was made with a zero byte.
#[track_caller]
pub fn readlinkat(at: impl AsFd, path: impl Arg, _: impl Into<Vec<u8>>) -> Result<CString> {
    let at = number(&at);
    let to = call_at("readlinkat", path, |state, who, path| state.readlink(who, at, path))?;
    Ok(CString::new(to).expect("a target has no zero byte"))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn unlinkat(at: impl AsFd, path: impl Arg, flags: AtFlags) -> Result<()> {
    let (at, rmdir) = (number(&at), flags.contains(AtFlags::REMOVEDIR));
    call_at("unlinkat", path, |state, who, path| state.unlinkat(who, at, path, rmdir))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn linkat(from_at: impl AsFd, from: impl Arg, to_at: impl AsFd, to: impl Arg, flags: AtFlags) -> Result<()> {
    let follow = flags.contains(AtFlags::SYMLINK_FOLLOW);
    two_names("linkat", &from_at, from, &to_at, to, |state, who, from, to| state.linkat(who, from, to, follow))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn renameat(from_at: impl AsFd, from: impl Arg, to_at: impl AsFd, to: impl Arg) -> Result<()> {
    let flags = RenameFlags::empty();
    two_names("renameat", &from_at, from, &to_at, to, |state, who, from, to| state.renameat(who, from, to, flags))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn renameat_with(
    from_at: impl AsFd,
    from: impl Arg,
    to_at: impl AsFd,
    to: impl Arg,
    flags: RenameFlags,
) -> Result<()> {
    two_names("renameat2", &from_at, from, &to_at, to, |state, who, from, to| state.renameat(who, from, to, flags))
}

#[track_caller]
fn two_names(
    name: &'static str,
    from_at: &impl AsFd,
    from: impl Arg,
    to_at: &impl AsFd,
    to: impl Arg,
    mut body: impl FnMut(&mut State, ProcessId, (i32, &[u8]), (i32, &[u8])) -> std::result::Result<(), Stop>,
) -> Result<()> {
    let (from_at, to_at) = (number(from_at), number(to_at));
    let (from, to) = (from.into_c_str()?, to.into_c_str()?);
    let about = |_: &State| format!("{} {}", from.to_string_lossy(), to.to_string_lossy());
    disk::call(name, about, |state, who| body(state, who, (from_at, from.to_bytes()), (to_at, to.to_bytes())))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn fsync(fd: impl AsFd) -> Result<()> {
    disk::sync("fsync", number(&fd), SyncKind::All)
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn fdatasync(fd: impl AsFd) -> Result<()> {
    disk::sync("fdatasync", number(&fd), SyncKind::Data)
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn syncfs(fd: impl AsFd) -> Result<()> {
    disk::sync("syncfs", number(&fd), SyncKind::Disk)
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn fchmod(fd: impl AsFd, mode: Mode) -> Result<()> {
    let mode = mode.as_raw_mode();
    call_on("fchmod", &fd, |state, who, number| state.fchmod(who, number, mode))
}

/// Nobody has `/proc/self/fd` here, and nothing else is changed by its name.
///
/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn chmodat(at: impl AsFd, path: impl Arg, _: Mode, flags: AtFlags) -> Result<()> {
    look("fchmodat", &at, path, flags).and(Err(Errno::OPNOTSUPP))
}

/// Of a time before 1970 nobody knows here.
///
/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn futimens(fd: impl AsFd, times: &Timestamps) -> Result<()> {
    let Timespec { tv_sec, tv_nsec } = times.last_modification;
    let time = u64::try_from(tv_sec).ok().zip(u32::try_from(tv_nsec).ok().filter(|nanos| *nanos < 1_000_000_000));
    call_on("utimensat", &fd, |state, who, number| {
        let (seconds, nanos) = time.ok_or(Errno::INVAL)?;
        state.futimens(who, number, Duration::new(seconds, nanos))
    })
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn ftruncate(fd: impl AsFd, len: u64) -> Result<()> {
    call_on("ftruncate", &fd, |state, who, number| state.ftruncate(who, number, len))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn fallocate(fd: impl AsFd, flags: FallocateFlags, at: u64, len: u64) -> Result<()> {
    let (keep_size, other) = (flags.contains(FallocateFlags::KEEP_SIZE), flags & !FallocateFlags::KEEP_SIZE);
    call_on("fallocate", &fd, |state, who, number| {
        if flags == FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE {
            return state.punch(who, number, at, len);
        }
        if !other.is_empty() {
            return Err(Errno::OPNOTSUPP.into());
        }
        state.fallocate(who, number, (at, len), keep_size)
    })
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn seek(fd: impl AsFd, to: SeekFrom) -> Result<u64> {
    call_on("lseek", &fd, |state, who, number| state.seek(who, number, to))
}

/// As [`::rustix::fs::Dir`].
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    entries: VecDeque<DirEntry>,
    ended: bool,
}

/// As [`::rustix::fs::DirEntry`].
#[derive(Clone, Debug)]
pub struct DirEntry {
    name: CString,
    kind: FileType,
    inode: u64,
}

impl DirEntry {
    #[must_use]
    pub fn file_name(&self) -> &CStr {
        &self.name
    }

    #[must_use]
    pub fn file_type(&self) -> FileType {
        self.kind
    }

    #[must_use]
    pub fn ino(&self) -> u64 {
        self.inode
    }
}

impl Dir {
    /// # Errors
    ///
    /// None here.
    pub fn new(fd: impl Into<OwnedFd>) -> Result<Self> {
        Ok(Self { fd: fd.into(), entries: VecDeque::new(), ended: false })
    }

    /// # Errors
    ///
    /// As of the system call.
    #[track_caller]
    pub fn read_from(fd: impl AsFd) -> Result<Self> {
        Self::new(openat(fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

impl Iterator for Dir {
    type Item = Result<DirEntry>;

    #[track_caller]
    fn next(&mut self) -> Option<Self::Item> {
        if self.entries.is_empty() && !self.ended {
            let mut rng = world::current().chance(fastrand::Rng::fork);
            match call_on("getdents64", &self.fd, |state, who, number| state.list(who, number, &mut rng)) {
                Ok(told) => {
                    self.ended = told.is_empty();
                    self.entries.extend(told.into_iter().map(|(name, kind, inode)| DirEntry {
                        name: CString::new(name).expect("a name has no zero byte"),
                        kind,
                        inode,
                    }));
                }
                Err(errno) => {
                    self.ended = true;
                    return (errno != Errno::NOENT).then_some(Err(errno));
                }
            }
        }
        self.entries.pop_front().map(Ok)
    }
}
