//! `std::fs` of a simulated world.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use ::rustix::fs::{FileType as Type, OFlags, RenameFlags};

pub use std::fs::TryLockError;
pub use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};

use super::disk::{self, AT_FDCWD, How, Looks, SyncKind};
use super::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use super::time::SystemTime;
use super::world;

/// As [`std::fs::File`].
#[derive(Debug)]
pub struct File(OwnedFd);

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[track_caller]
fn open(path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
    if disk::is_proc(bytes(path)) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let opened = disk::call(
        "openat",
        |_| shown(path),
        |state, who| state.openat(who, AT_FDCWD, bytes(path), flags | OFlags::CLOEXEC, mode, How::FOLLOW),
    );
    Ok(File(OwnedFd::own(opened?)))
}

impl File {
    /// # Errors
    ///
    /// As of `open`.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        open(path.as_ref(), OFlags::RDONLY, 0)
    }

    /// # Errors
    ///
    /// As of `open`.
    #[track_caller]
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        open(path.as_ref(), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC, 0o666)
    }

    /// # Errors
    ///
    /// As of `open`.
    #[track_caller]
    pub fn create_new(path: impl AsRef<Path>) -> io::Result<Self> {
        open(path.as_ref(), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o666)
    }

    #[must_use]
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    #[track_caller]
    fn call<T>(
        &self,
        name: &'static str,
        mut body: impl FnMut(&mut disk::State, world::ProcessId, i32) -> Result<T, disk::Stop>,
    ) -> io::Result<T> {
        let number = self.number();
        let who = world::current().process();
        Ok(disk::call(name, |state| state.shown(who, number), |state, who| body(state, who, number))?)
    }

    /// # Errors
    ///
    /// As of `fstat`.
    #[track_caller]
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.call("statx", |state, who, number| state.fstat(who, number)).map(Metadata)
    }

    /// # Errors
    ///
    /// As of `ftruncate`.
    #[track_caller]
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.call("ftruncate", |state, who, number| state.ftruncate(who, number, len))
    }

    /// # Errors
    ///
    /// As of `fsync`.
    #[track_caller]
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(disk::sync("fsync", self.number(), SyncKind::All)?)
    }

    /// # Errors
    ///
    /// As of `fdatasync`.
    #[track_caller]
    pub fn sync_data(&self) -> io::Result<()> {
        Ok(disk::sync("fdatasync", self.number(), SyncKind::Data)?)
    }

    /// # Errors
    ///
    /// Another has it, or as of `flock`.
    #[track_caller]
    pub fn try_lock(&self) -> Result<(), TryLockError> {
        self.call("flock", |state, who, number| state.flock(who, number, true)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => TryLockError::WouldBlock,
            _ => TryLockError::Error(error),
        })
    }

    /// # Errors
    ///
    /// As of `flock`.
    #[track_caller]
    pub fn unlock(&self) -> io::Result<()> {
        self.call("flock", |state, who, number| state.flock(who, number, false))
    }

    /// # Errors
    ///
    /// The process has no descriptor left.
    #[track_caller]
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<File> for OwnedFd {
    fn from(file: File) -> Self {
        file.0
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.number()
    }
}

impl Read for &File {
    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.call("read", |state, who, number| state.read(who, number, None, buffer))
    }
}

impl Write for &File {
    #[track_caller]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call("write", |state, who, number| state.write(who, number, None, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    #[track_caller]
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => ::rustix::fs::SeekFrom::Start(at),
            SeekFrom::End(by) => ::rustix::fs::SeekFrom::End(by),
            SeekFrom::Current(by) => ::rustix::fs::SeekFrom::Current(by),
        };
        self.call("lseek", |state, who, number| state.seek(who, number, to))
    }
}

impl Read for File {
    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for File {
    #[track_caller]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    #[track_caller]
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}

impl FileExt for File {
    #[track_caller]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call("pread64", |state, who, number| state.read(who, number, Some(offset), buffer))
    }

    #[track_caller]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.call("pwrite64", |state, who, number| state.write(who, number, Some(offset), bytes))
    }

    #[track_caller]
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    buffer = &mut buffer[length..];
                    offset += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[track_caller]
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    bytes = &bytes[length..];
                    offset += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// As [`std::fs::OpenOptions`].
#[derive(Clone, Debug)]
pub struct OpenOptions {
    read: bool,
    write: bool,
    append: bool,
    truncate: bool,
    create: bool,
    create_new: bool,
    mode: u32,
    custom: i32,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! option {
    ($($name:ident),*) => {
        $(pub fn $name(&mut self, $name: bool) -> &mut Self {
            self.$name = $name;
            self
        })*
    };
}

impl OpenOptions {
    #[must_use]
    pub fn new() -> Self {
        Self {
            read: false,
            write: false,
            append: false,
            truncate: false,
            create: false,
            create_new: false,
            mode: 0o666,
            custom: 0,
        }
    }

    option!(read, write, append, truncate, create, create_new);

    /// # Errors
    ///
    /// As of `open`.
    #[track_caller]
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let access = match (self.read, self.write || self.append) {
            (true, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
            (false, false) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        if (self.truncate || self.create || self.create_new) && access == OFlags::RDONLY {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut flags = access | OFlags::from_bits_retain(self.custom.cast_unsigned());
        flags.set(OFlags::APPEND, self.append);
        flags.set(OFlags::TRUNC, self.truncate && !self.create_new);
        flags.set(OFlags::CREATE, self.create || self.create_new);
        flags.set(OFlags::EXCL, self.create_new);
        open(path.as_ref(), flags, self.mode)
    }
}

impl OpenOptionsExt for OpenOptions {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }

    fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.custom = flags;
        self
    }
}

/// As [`std::fs::Metadata`].
#[derive(Clone, Copy, Debug)]
pub struct Metadata(Looks);

/// As [`std::fs::FileType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType(Type);

impl FileType {
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.0 == Type::RegularFile
    }

    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.0 == Type::Directory
    }

    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.0 == Type::Symlink
    }
}

#[allow(clippy::len_without_is_empty)]
impl Metadata {
    #[must_use]
    pub fn file_type(&self) -> FileType {
        FileType(Type::from_raw_mode(self.0.mode))
    }

    #[must_use]
    pub fn is_file(&self) -> bool {
        self.file_type().is_file()
    }

    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type().is_dir()
    }

    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.file_type().is_symlink()
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.size
    }

    /// # Errors
    ///
    /// None here.
    pub fn modified(&self) -> io::Result<SystemTime> {
        Ok(SystemTime::from_epoch(self.0.modified))
    }

    /// # Errors
    ///
    /// None here.
    pub fn created(&self) -> io::Result<SystemTime> {
        Ok(SystemTime::from_epoch(self.0.born))
    }
}

fn seconds(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

impl MetadataExt for Metadata {
    fn dev(&self) -> u64 {
        ::rustix::fs::makedev(self.0.dev.0, self.0.dev.1)
    }

    fn ino(&self) -> u64 {
        self.0.number
    }

    fn mode(&self) -> u32 {
        self.0.mode
    }

    fn nlink(&self) -> u64 {
        self.0.links.into()
    }

    fn uid(&self) -> u32 {
        self.0.owner.0
    }

    fn gid(&self) -> u32 {
        self.0.owner.1
    }

    fn rdev(&self) -> u64 {
        0
    }

    fn size(&self) -> u64 {
        self.0.size
    }

    fn atime(&self) -> i64 {
        self.mtime()
    }

    fn atime_nsec(&self) -> i64 {
        self.mtime_nsec()
    }

    fn mtime(&self) -> i64 {
        seconds(self.0.modified)
    }

    fn mtime_nsec(&self) -> i64 {
        self.0.modified.subsec_nanos().into()
    }

    fn ctime(&self) -> i64 {
        seconds(self.0.changed)
    }

    fn ctime_nsec(&self) -> i64 {
        self.0.changed.subsec_nanos().into()
    }

    fn blksize(&self) -> u64 {
        4096
    }

    fn blocks(&self) -> u64 {
        self.0.allocated / 512
    }
}

#[track_caller]
fn look(path: &Path, follow: bool) -> io::Result<Metadata> {
    let looked =
        disk::call("statx", |_| shown(path), |state, who| state.statat(who, AT_FDCWD, bytes(path), (follow, false)));
    Ok(Metadata(looked?))
}

/// # Errors
///
/// As of `stat`.
#[track_caller]
pub fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    look(path.as_ref(), true)
}

/// # Errors
///
/// As of `lstat`.
#[track_caller]
pub fn symlink_metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    look(path.as_ref(), false)
}

/// # Errors
///
/// It cannot be told.
#[track_caller]
pub fn exists(path: impl AsRef<Path>) -> io::Result<bool> {
    match metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// # Errors
///
/// As of `realpath`.
#[track_caller]
pub fn canonicalize(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    let path = path.as_ref();
    let found = disk::call("readlink", |_| shown(path), |state, who| state.realpath(who, bytes(path)))?;
    Ok(PathBuf::from(OsString::from_vec(found)))
}

/// # Errors
///
/// As of `open` and `read`.
#[track_caller]
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut all, mut filled) = (vec![0; 4096], 0);
    loop {
        match file.read(&mut all[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if filled == all.len() {
            all.resize(all.len() * 4, 0);
        }
    }
    all.truncate(filled);
    Ok(all)
}

/// # Errors
///
/// As of `open` and `read`, or it is no UTF-8.
#[track_caller]
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// # Errors
///
/// As of `open` and `write`.
#[track_caller]
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> io::Result<()> {
    File::create(path)?.write_all(content.as_ref())
}

/// # Errors
///
/// As of `unlink`.
#[track_caller]
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    Ok(disk::call("unlinkat", |_| shown(path), |state, who| state.unlinkat(who, AT_FDCWD, bytes(path), false))?)
}

/// # Errors
///
/// As of `rmdir`.
#[track_caller]
pub fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    Ok(disk::call("unlinkat", |_| shown(path), |state, who| state.unlinkat(who, AT_FDCWD, bytes(path), true))?)
}

/// # Errors
///
/// As of `unlink` and `rmdir`.
#[track_caller]
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    for entry in read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_dir_all(entry.path())? } else { remove_file(entry.path())? }
    }
    remove_dir(path)
}

/// # Errors
///
/// As of `rename`.
#[track_caller]
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let about = |_: &_| format!("{} {}", from.display(), to.display());
    Ok(disk::call("renameat", about, |state, who| {
        state.renameat(who, (AT_FDCWD, bytes(from)), (AT_FDCWD, bytes(to)), RenameFlags::empty())
    })?)
}

/// # Errors
///
/// As of `link`.
#[track_caller]
pub fn hard_link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let about = |_: &_| format!("{} {}", from.display(), to.display());
    Ok(disk::call("linkat", about, |state, who| {
        state.linkat(who, (AT_FDCWD, bytes(from)), (AT_FDCWD, bytes(to)), false)
    })?)
}

/// As [`std::os::unix::fs::symlink`].
///
/// # Errors
///
/// As of `symlink`.
#[track_caller]
pub fn symlink(to: impl AsRef<Path>, path: impl AsRef<Path>) -> io::Result<()> {
    let (to, path) = (to.as_ref(), path.as_ref());
    Ok(disk::call("symlinkat", |_| shown(path), |state, who| state.symlinkat(who, bytes(to), AT_FDCWD, bytes(path)))?)
}

/// # Errors
///
/// As of `readlink`.
#[track_caller]
pub fn read_link(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    let path = path.as_ref();
    let to = disk::call("readlinkat", |_| shown(path), |state, who| state.readlink(who, AT_FDCWD, bytes(path)))?;
    Ok(PathBuf::from(OsString::from_vec(to)))
}

/// # Errors
///
/// As of `mkdir`.
#[track_caller]
pub fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    DirBuilder::new().create(path)
}

/// # Errors
///
/// As of `mkdir`.
#[track_caller]
pub fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)
}

/// As [`std::fs::DirBuilder`].
#[derive(Debug)]
pub struct DirBuilder {
    mode: u32,
    recursive: bool,
}

impl Default for DirBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl DirBuilder {
    #[must_use]
    pub fn new() -> Self {
        Self { mode: 0o777, recursive: false }
    }

    pub fn recursive(&mut self, recursive: bool) -> &mut Self {
        self.recursive = recursive;
        self
    }

    /// # Errors
    ///
    /// As of `mkdir`.
    #[track_caller]
    pub fn create(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        if self.recursive { self.create_all(path) } else { self.make(path) }
    }

    #[track_caller]
    fn make(&self, path: &Path) -> io::Result<()> {
        let mode = self.mode;
        Ok(disk::call("mkdirat", |_| shown(path), |state, who| state.mkdirat(who, AT_FDCWD, bytes(path), mode))?)
    }

    #[track_caller]
    fn create_all(&self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        match self.make(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(above) = path.parent() {
                    self.create_all(above)?;
                }
                match self.make(path) {
                    Err(error) if !metadata(path).is_ok_and(|meta| meta.is_dir()) => Err(error),
                    _ => Ok(()),
                }
            }
            Err(error) if !metadata(path).is_ok_and(|meta| meta.is_dir()) => Err(error),
            _ => Ok(()),
        }
    }
}

impl DirBuilderExt for DirBuilder {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }
}

/// As [`std::fs::ReadDir`].
#[derive(Debug)]
pub struct ReadDir {
    entries: super::rustix::fs::Dir,
    path: PathBuf,
}

/// As [`std::fs::DirEntry`].
#[derive(Debug)]
pub struct DirEntry {
    name: OsString,
    kind: Type,
    path: PathBuf,
}

/// # Errors
///
/// As of `open`.
#[track_caller]
pub fn read_dir(path: impl AsRef<Path>) -> io::Result<ReadDir> {
    let path = path.as_ref().to_owned();
    let entries = super::rustix::fs::Dir::new(open(&path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?.0)?;
    Ok(ReadDir { entries, path })
}

impl Iterator for ReadDir {
    type Item = io::Result<DirEntry>;

    #[track_caller]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                Err(errno) => return Some(Err(errno.into())),
            };
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                let name = OsStr::from_bytes(name).to_owned();
                return Some(Ok(DirEntry { path: self.path.join(&name), name, kind: entry.file_type() }));
            }
        }
    }
}

impl DirEntry {
    #[must_use]
    pub fn file_name(&self) -> OsString {
        self.name.clone()
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// # Errors
    ///
    /// None here.
    pub fn file_type(&self) -> io::Result<FileType> {
        Ok(FileType(self.kind))
    }

    /// # Errors
    ///
    /// As of `lstat`.
    #[track_caller]
    pub fn metadata(&self) -> io::Result<Metadata> {
        symlink_metadata(&self.path)
    }
}
