//! File systems of their own, mounted where nobody else sees them: in a mount namespace that ends with the process that
//! keeps it, and with it the mounts and the loop device.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::processes::{LeaderProcess, Process, Stage, find, run};
use super::wait_until;

/// A mounted file system.
pub struct Volume<'a> {
    stage: &'a Stage,
    keeper: Process,
    pid: u32,
    /// Whether it takes a user namespace too.
    as_user: bool,
}

/// Where it is mounted, and where a loop device's file is, in the stage. What is above the first is on another file system.
const MOUNT: &str = "above/volume";
/// The folder of the first.
const ABOVE: &str = "above";
const BACKING: &str = "backing";

impl<'a> Volume<'a> {
    /// One in memory, of so many MiB. Needs no privileges where user namespaces are allowed.
    pub fn in_memory(stage: &'a Stage, mebibytes: u32) -> Self {
        let mount = mount_point(stage);
        Self::mounted(stage, &format!("mount -t tmpfs -o size={mebibytes}m none {}", mount.display()))
    }

    /// An ext4 of 64 MiB on a loop device, which only the journal and other metadata have room for so far: what the
    /// files in it take comes out of a file system in memory of `mebibytes`. Needs root.
    pub fn ext4(stage: &'a Stage, mebibytes: u32) -> Self {
        let (mount, backing) = (mount_point(stage), stage.folder(BACKING));
        let (mount, backing, made) = (mount.display(), backing.display(), stage.path("made"));
        let made = made.display();
        let mkfs = find("mkfs.ext4", "e2fsprogs");
        let mkfs = mkfs.display();
        Self::mounted(
            stage,
            &format!(
                "mount -t tmpfs -o size={mebibytes}m none {backing} && truncate -s 64M {made} && \
                 {mkfs} -q -E lazy_itable_init=0,lazy_journal_init=0 {made} && \
                 cp --sparse=never {made} {backing}/disk && rm {made} && \
                 mount -o loop {backing}/disk {mount} && fstrim {mount}"
            ),
        )
    }

    /// An ext4 of 32 MiB whose disk can be made to [stall](Self::stall): it is a file on another ext4. Needs root.
    pub fn that_stalls(stage: &'a Stage) -> Self {
        let (mount, backing, made) = (mount_point(stage), stage.folder(BACKING), stage.path("made"));
        let (mount, backing, made) = (mount.display(), backing.display(), made.display());
        let mkfs = find("mkfs.ext4", "e2fsprogs");
        let mkfs = mkfs.display();
        Self::mounted(
            stage,
            &format!(
                "truncate -s 64M {made} && {mkfs} -q {made} && mount -o loop {made} {backing} && \
                 truncate -s 32M {backing}/disk && {mkfs} -q {backing}/disk && mount -o loop {backing}/disk {mount}"
            ),
        )
    }

    /// The folder that it is mounted in, for those who are in its namespace: a data directory on two file systems.
    pub fn above(&self) -> PathBuf {
        self.stage.path(ABOVE)
    }

    /// Starts a program where it is mounted.
    pub fn start(&self, name: &str, program_and_args: &[&str]) -> Process {
        let args = self.enter().into_iter().chain(program_and_args.iter().map(|arg| (*arg).to_owned()));
        self.stage.start(name, find("nsenter", "util-linux"), args)
    }

    /// From now on whatever waits for the disk waits, until the result is dropped. What goes to the page cache does not.
    pub fn stall(&self) -> Stall<'_> {
        self.run(&format!("fsfreeze --freeze {}", self.stage.path(BACKING).display()));
        Stall(self)
    }

    fn mounted(stage: &'a Stage, mounting: &str) -> Self {
        let as_user = !rustix::process::geteuid().is_root();
        let user: &[&str] = if as_user { &["--user", "--map-root-user"] } else { &[] };
        let script = format!("set -e; {mounting}; echo mounted; exec sleep infinity");
        let args = ["--mount", "--propagation", "private"].iter().chain(user).copied().chain(["sh", "-c", &script]);
        let mut keeper = stage.start("volume", find("unshare", "util-linux"), args);
        wait_until("the volume is mounted", || {
            assert!(!keeper.has_ended(), "it could not be mounted");
            keeper.log().contains("mounted")
        });
        let pid = keeper.id();
        Self { stage, keeper, pid, as_user }
    }

    /// Where it is mounted, for those who are in its namespace.
    pub fn mount(&self) -> PathBuf {
        self.stage.path(MOUNT)
    }

    /// A file in it, for this process.
    pub fn path(&self, name: &str) -> PathBuf {
        self.seen(&self.stage.path(MOUNT).join(name))
    }

    /// A file beside the loop device's.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.seen(&self.stage.path(BACKING).join(name))
    }

    fn seen(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").unwrap();
        Path::new("/proc").join(self.pid.to_string()).join("root").join(inside)
    }

    /// What `nsenter` needs to run a program where it is mounted.
    pub fn enter(&self) -> Vec<String> {
        let mut args = vec![format!("--target={}", self.pid), "--mount".to_owned()];
        if self.as_user {
            args.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        args
    }

    /// Runs a shell's command where it is mounted.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        run(Command::new(find("nsenter", "util-linux")).args(self.enter()).args(["sh", "-ec", command]))
    }

    /// Starts `paceline follow` into a folder of it.
    pub fn follower(&self, folder: &str, leader: SocketAddr, options: &[&str]) -> Process {
        let dir = self.stage.path(MOUNT).join(folder);
        let leader = leader.to_string();
        let follow = [env!("CARGO_BIN_EXE_paceline"), "follow", &leader, "--data-dir", dir.to_str().unwrap()];
        self.start("follower", &[&follow[..], options].concat())
    }

    /// Starts `paceline leader` on a folder of it.
    pub fn leader(&self, folder: &str, options: &[&str]) -> LeaderProcess {
        let nsenter = [find("nsenter", "util-linux").into_os_string()];
        let command: Vec<_> = nsenter.into_iter().chain(self.enter().into_iter().map(Into::into)).collect();
        self.stage.leader_under(&command, &self.stage.path(MOUNT).join(folder), options)
    }

    /// What is not on the disk is lost: the file system takes no more writes and its journal is left as it is. Then whoever
    /// uses it is killed, and it is mounted again.
    pub fn lose_power(&self, user: &mut Process) {
        let mount = self.stage.path(MOUNT);
        let mount = mount.display();
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, as xfstests have it.
        let shutdown = r#"open(my $dir, "<", $ARGV[0]) or die $!; my $how = pack("L", 2); ioctl($dir, 0x8004587d, $how) or die $!"#;
        self.run(&format!("perl -e '{shutdown}' {mount}"));
        user.kill();
        let disk = self.stage.path(BACKING).join("disk");
        self.run(&format!("umount {mount}; mount -o loop {} {mount}", disk.display()));
    }

    /// Takes the room that there is, with a file of that name beside the loop device's, or in the volume.
    pub fn fill(&self, path: &Path) {
        use std::io::Write;
        let mut filler = std::fs::File::create(path).unwrap();
        while filler.write_all(&[0xff; 4096]).is_ok() {}
    }
}

fn mount_point(stage: &Stage) -> PathBuf {
    stage.folder(ABOVE);
    stage.folder(MOUNT)
}

/// A disk that stalls.
pub struct Stall<'a>(&'a Volume<'a>);

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.0.run(&format!("fsfreeze --unfreeze {}", self.0.stage.path(BACKING).display()));
    }
}
