//! What is written: random bytes, which no compression shrinks, and JSON lines as a service logs them.

use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Random,
    Json,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Json => "JSON lines",
        }
    }

    /// A pool of this kind to cut pieces from: far longer than what LZ4 looks back at.
    pub fn pool(self) -> Vec<u8> {
        const POOL_BYTES: usize = 8 << 20;
        let mut random = fastrand::Rng::with_seed(42);
        match self {
            Self::Random => {
                let mut pool = vec![0; POOL_BYTES];
                random.fill(&mut pool);
                pool
            }
            Self::Json => {
                let mut pool = String::with_capacity(POOL_BYTES + 512);
                while pool.len() < POOL_BYTES {
                    json_line(&mut pool, &mut random);
                }
                pool.into_bytes()
            }
        }
    }
}

/// About 250 bytes; what differs from line to line is what differs in a log.
fn json_line(out: &mut String, random: &mut fastrand::Rng) {
    const LEVELS: [&str; 4] = ["info", "info", "warn", "debug"];
    const SERVICES: [&str; 5] = ["orders", "payments", "stock", "mailer", "gateway"];
    const MESSAGES: [&str; 4] =
        ["request served", "retrying after a timeout", "cache miss, read from the store", "message published"];
    let (minute, second, milli) = (random.u8(..60), random.u8(..60), random.u16(..1000));
    let _ = writeln!(
        out,
        "{{\"time\":\"2026-03-14T09:{minute:02}:{second:02}.{milli:03}Z\",\"level\":\"{}\",\"service\":\"{}\",\
         \"trace\":\"{:016x}\",\"user\":{},\"path\":\"/api/v1/items/{}\",\"status\":200,\"duration_ms\":{}.{},\
         \"message\":\"{}\"}}",
        random.choice(LEVELS).unwrap_or_default(),
        random.choice(SERVICES).unwrap_or_default(),
        random.u64(..),
        random.u32(..100_000),
        random.u32(..1_000_000),
        random.u16(..500),
        random.u8(..10),
        random.choice(MESSAGES).unwrap_or_default(),
    );
}

/// Pieces of one size from a pool, over and over.
pub struct Pieces<'a> {
    pool: &'a [u8],
    size: usize,
    at: usize,
}

impl<'a> Pieces<'a> {
    /// Begins at `from`, so that threads write different things.
    pub fn new(pool: &'a [u8], size: usize, from: usize) -> Self {
        Self { pool, size, at: from % (pool.len() - size) }
    }

    #[inline]
    pub fn next_piece(&mut self) -> &'a [u8] {
        if self.at + self.size > self.pool.len() {
            self.at = 0;
        }
        let piece = &self.pool[self.at..self.at + self.size];
        self.at += self.size;
        piece
    }
}
