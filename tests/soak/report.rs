//! What a person sees: one line of what happens now on a terminal, a line each elsewhere; and the table at the end.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub struct Progress {
    began: Instant,
    terminal: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self { began: Instant::now(), terminal: std::io::stdout().is_terminal() }
    }

    /// Something happened.
    pub fn say(&self, what: &str) {
        let mut out = std::io::stdout().lock();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(out, "{clear}{} {what}", clock(self.began.elapsed()));
    }

    /// How it stands, on a terminal only.
    pub fn status(&self, status: &str) {
        if self.terminal {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "\r\x1b[K{} {status}", clock(self.began.elapsed())).and_then(|()| out.flush());
        }
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Names and values, in two columns.
#[derive(Default)]
pub struct Table(Vec<(String, String)>);

impl Table {
    pub fn row(&mut self, name: impl Into<String>, value: impl ToString) {
        self.0.push((name.into(), value.to_string()));
    }

    pub fn print(&self) {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in &self.0 {
            println!("{name:width$}  {value}");
        }
    }
}

pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
