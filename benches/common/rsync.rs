//! rsync, to compare with: a daemon on loopback, and what one of its transfers moved.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// rsync's version, or what to do where there is none.
pub fn version() -> Result<String, String> {
    let remedy = "rsync is not there, its columns are left out: install it, as with `apt-get install rsync`";
    let output = Command::new("rsync").arg("--version").output().map_err(|_| remedy.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(str::to_owned).ok_or(remedy.to_owned())
}

/// A daemon that offers one directory; it ends when this is dropped.
pub struct Daemon {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Daemon {
    pub fn start(offered: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = dir.path().join("rsyncd.conf");
        // A daemon that root starts would read as nobody otherwise.
        let user = if rustix::process::getuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
        let offered = offered.display();
        let text = format!("use chroot = no\n{user}[data]\npath = {offered}\nread only = yes\n");
        std::fs::write(&config, text).expect("space on disk");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let child = Command::new("rsync")
            .args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")])
            .args([option("config", &config), option("log-file", &dir.path().join("log"))])
            .stdin(Stdio::null())
            .spawn()
            .expect("rsync's daemon");
        let daemon = Self { child, port, _dir: dir };
        let deadline = Instant::now() + super::PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "rsync's daemon does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    /// Copies to `target` with these options; returns the bytes that moved, both ways.
    pub fn copy_to(&self, target: &Path, options: &[&str]) -> Result<u64, String> {
        let output = Command::new("rsync")
            .args(["-a", "--stats", "--no-human-readable"])
            .args(options)
            .arg(format!("rsync://127.0.0.1:{}/data/", self.port))
            .arg(format!("{}/", target.display()))
            .env("LC_ALL", "C")
            .output()
            .map_err(|error| format!("cannot run rsync: {error}"))?;
        if !output.status.success() {
            return Err(format!("rsync failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let figure = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.chars().filter(char::is_ascii_digit).collect::<String>().parse::<u64>().ok()
        };
        let moved = figure("Total bytes sent:").zip(figure("Total bytes received:"));
        moved.map(|(sent, received)| sent + received).ok_or("rsync did not tell what it moved".into())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
