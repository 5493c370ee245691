//! A bound on what reading an input may allocate.

use std::alloc::System;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use cap::Cap;

#[global_allocator]
static ALLOCATED: Cap<System> = Cap::new(System, usize::MAX);

/// Runs `read`, all threads of which may have so many bytes more than there were before, at once. Afterwards no more than
/// `left_bytes_max` of it may be there.
pub fn bounded<T>(bytes_max: usize, left_bytes_max: usize, read: impl FnOnce() -> T) -> T {
    let before = ALLOCATED.allocated();
    ALLOCATED.set_limit(before + bytes_max).expect("less is allocated");
    let result = read();
    ALLOCATED.set_limit(usize::MAX).expect("less is allocated");
    let left = ALLOCATED.allocated().saturating_sub(before);
    assert!(left <= left_bytes_max, "{left} bytes are left allocated");
    check_growth();
    result
}

/// What inputs leave behind for those after them is there after the first ones.
fn check_growth() {
    const FIRST: usize = 1000;
    const GROWTH_BYTES_MAX: usize = 32 << 20;
    static INPUTS: AtomicUsize = AtomicUsize::new(0);
    static SETTLED_BYTES: AtomicUsize = AtomicUsize::new(0);
    let inputs = INPUTS.fetch_add(1, Ordering::Relaxed);
    let allocated = ALLOCATED.allocated();
    if inputs < FIRST {
        SETTLED_BYTES.fetch_max(allocated, Ordering::Relaxed);
    } else {
        let grown = allocated.saturating_sub(SETTLED_BYTES.load(Ordering::Relaxed));
        assert!(grown <= GROWTH_BYTES_MAX, "{grown} bytes more are allocated than after the first inputs");
    }
}

/// For pure readers: some kilobytes, and so many bytes for each of the input's.
pub fn for_each_byte(input: &[u8], bytes_max: usize, read: impl FnOnce()) {
    bounded((64 << 10) + input.len() * bytes_max, 16 << 10, read);
}

/// Has all that is logged put together as for a log, and thrown away.
pub fn log_to_nowhere() {
    static LOGGER: Nowhere = Nowhere;
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(log::LevelFilter::Debug);
}

struct Nowhere;

impl log::Log for Nowhere {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("paceline")
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Sink;
        impl Write for Sink {
            fn write_str(&mut self, _: &str) -> fmt::Result {
                Ok(())
            }
        }
        if self.enabled(record.metadata()) {
            let _ = Sink.write_fmt(*record.args());
        }
    }

    fn flush(&self) {}
}

/// Lets a panic be told in full.
pub fn unbounded_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = ALLOCATED.set_limit(usize::MAX);
        tell(panic);
    }));
}
