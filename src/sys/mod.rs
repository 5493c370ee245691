//! The one door to what a thread may wait for, or what can fail: locks, channels, threads, time, sockets, files, chance.
//!
//! Here it is nothing but other names for `std`, `rustix`, `socket2`, `parking_lot`, `crossbeam-channel` and `fastrand`. With the
//! feature `simulate` a deterministic world stands behind the same names. A test keeps the rest of the crate from going past it.
//!
//! Not behind it, and so out of the simulation's reach: atomics (weak memory ordering), `mmap`, signals, child processes and hooks, the
//! client proxies, and etcd. inotify and `poll` are simulated.

#[cfg(feature = "simulate")]
pub use self::simulated::*;

#[cfg(feature = "simulate")]
pub mod simulated;

#[cfg(not(feature = "simulate"))]
pub(crate) use self::real::*;

#[cfg(not(feature = "simulate"))]
mod real {
    pub(crate) use ::{crossbeam_channel as channel, fastrand as random, rustix, socket2};
    pub(crate) use std::{net, thread};

    pub(crate) mod fs {
        pub(crate) use std::fs::*;
        pub(crate) use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
    }

    pub(crate) mod process {
        pub(crate) use std::process::id;

        /// Another one whenever this machine has started anew. (A simulated machine is known by its disk: `_root` is on that.)
        pub(crate) fn boot_id(_root: impl std::os::fd::AsFd) -> Option<u128> {
            let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            let digits = text.trim_end().replace('-', "");
            (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())?
        }
    }

    pub(crate) mod fd {
        pub(crate) use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    }

    pub(crate) mod time {
        pub(crate) use std::time::{Instant, SystemTime, UNIX_EPOCH};
    }

    pub(crate) mod sync {
        pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
        pub(crate) use std::sync::OnceLock;
    }
}

/// Maps and sets whose order of iteration is another one in each run, but the same for each run of a simulated history.
pub(crate) mod hash {
    #[cfg(feature = "simulate")]
    pub(crate) use foldhash::fast::FixedState as State;
    #[cfg(not(feature = "simulate"))]
    pub(crate) use foldhash::fast::RandomState as State;

    pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, State>;
    pub(crate) type HashSet<T> = std::collections::HashSet<T, State>;
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// What the facade stands in front of. Plain data (`std::net::SocketAddr`, `std::io`) is not among it.
    const BEHIND: [&str; 14] = [
        "std::fs",
        "std::os::unix::fs",
        "std::os::fd",
        "std::net::{",
        "std::net::T",
        "std::net::U",
        "std::thread",
        "std::time::{",
        "std::time::Instant",
        "std::time::SystemTime",
        "parking_lot",
        "crossbeam_channel::",
        "fastrand::",
        "socket2::",
    ];

    /// Where the real thing is meant: the binaries, child processes, the proxies, etcd.
    const BEYOND: [&str; 7] =
        ["src/sys/", "src/bin/", "src/cli/", "src/main.rs", "src/node/program/", "src/node/hook.rs", "src/node/proxy/"];

    #[test]
    fn nobody_goes_past_the_facade() {
        let mut files = Vec::new();
        collect(Path::new("src"), &mut files);
        let mut past = Vec::new();
        for file in files {
            let name = file.to_str().unwrap();
            let beyond = BEYOND.iter().chain(&["src/coordinator/etcd/"]).any(|beyond| name.starts_with(beyond));
            if beyond || name.contains("tests") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("\n#[cfg(test)]\n").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.replace("sys::rustix", "").replace("sys::socket2", "");
                let direct = line.starts_with("use rustix") || BEHIND.iter().any(|behind| line.contains(behind));
                if direct && !line.trim_start().starts_with("//") {
                    past.push(format!("{name}:{}: {line}", number + 1));
                }
            }
        }
        assert!(past.is_empty(), "not through crate::sys:\n{}", past.join("\n"));
    }

    fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
}
