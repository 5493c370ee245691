//! Signals: SIGTERM and SIGINT ask for the end, and a second one ends the process on the spot; SIGHUP is ignored. A thread named
//! `signals` receives them. SIGPIPE was ignored before `main` began.

use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, output};

/// How long the log gets when the process ends on the spot.
const LAST_WORDS_MAX: Duration = Duration::from_millis(100);

/// Receives the first SIGTERM or SIGINT.
pub(crate) fn signals() -> Result<Receiver<i32>, Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| Failure::runtime(format!("cannot handle signals: {error}")))?;
    let (tx, rx) = bounded(1);
    let wait = move || {
        let (mut was_asked, mut hung_up) = (false, false);
        for signal in signals.forever() {
            match signal {
                SIGHUP if hung_up => {}
                SIGHUP => {
                    hung_up = true;
                    log::warn!("SIGHUP is ignored: settings are read at the start only; restart to change them");
                }
                _ if was_asked => {
                    log::warn!("a second signal: ends at once");
                    output::flush(LAST_WORDS_MAX);
                    std::process::exit(128 + signal);
                }
                _ => {
                    was_asked = true;
                    let _ = tx.try_send(signal);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .map_err(|error| Failure::runtime(format!("cannot start a thread: {error}")))?;
    Ok(rx)
}
