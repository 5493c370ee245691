//! What hosts write: records that say who wrote them, in files that say which records are in them, so that any directory can be
//! compared with what was acknowledged.
//!
//! A *log* is a folder of segments of [`SEGMENT_RECORDS`] records each, of which the newest [`SEGMENTS_KEPT`] are kept. The one that is
//! written is `NUMBER.open`, and renamed to `NUMBER` when it is full. A *state* is a file of one record, replaced by the next.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use paceline::RelPath;

pub const LOGS: u32 = 4;
pub const SEGMENT_RECORDS: u64 = 256;
pub const SEGMENTS_KEPT: u64 = 8;

/// Which sequence of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    Log(u32),
    /// The state beside this log.
    State(u32),
}

impl Series {
    pub fn number(self) -> u32 {
        match self {
            Self::Log(log) => 2 * log,
            Self::State(log) => 2 * log + 1,
        }
    }

    pub fn of(number: u32) -> Self {
        if number.is_multiple_of(2) { Self::Log(number / 2) } else { Self::State(number / 2) }
    }
}

/// No two are the same: `writer` is one of one thread of one leader in one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub series: Series,
    pub number: u64,
    pub writer: u64,
}

/// Length of all of it, series, number, writer.
const HEADER_BYTES: usize = 4 + 4 + 8 + 8;

impl Record {
    /// All that is written of it: what does not compress, of a length that only the record decides.
    pub fn bytes(&self) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(self.number ^ self.writer ^ u64::from(self.series.number()) << 32);
        let length = HEADER_BYTES
            + match (self.series, random.u32(..64)) {
                (Series::Log(_), 0) => random.usize(..64 << 10),
                (Series::Log(_), _) => random.usize(40..1000),
                // More than is taken into a batch.
                (Series::State(_), 0..4) => random.usize(256 << 10..400 << 10),
                (Series::State(_), _) => random.usize(100..2000),
            };
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        bytes.extend_from_slice(&self.series.number().to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.writer.to_le_bytes());
        bytes.resize_with(length, || random.u8(..));
        bytes
    }

    /// The record that these bytes begin with, if it is whole and as it was written.
    fn first_of(bytes: &[u8]) -> Option<(Self, usize)> {
        let header = bytes.get(..HEADER_BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        let record = Self { series: Series::of(u32_at(4)), number: u64_at(8), writer: u64_at(16) };
        let whole = record.bytes();
        bytes.starts_with(&whole).then_some((record, whole.len()))
    }
}

/// A segment's name.
pub fn segment(log: u32, number: u64, open: bool) -> RelPath {
    RelPath::new(&format!("log-{log}/{number:08}{}", if open { ".open" } else { "" })).unwrap()
}

pub fn state(log: u32) -> RelPath {
    RelPath::new(&format!("state-{log}")).unwrap()
}

/// The segments of a log that are there, and which of them are open.
pub fn segments(dir: &Path, log: u32) -> io::Result<BTreeMap<u64, bool>> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(dir.join(format!("log-{log}"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or_default();
        let (number, open) = name.strip_suffix(".open").map_or((name, false), |number| (number, true));
        if let Ok(number) = number.parse() {
            found.entry(number).and_modify(|is_open| *is_open &= open).or_insert(open);
        }
    }
    Ok(found)
}

/// The records of a file up to the first that is not whole, and the length of those.
pub fn records(path: &Path) -> io::Result<(Vec<Record>, u64, u64)> {
    let bytes = fs::read(path)?;
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some((record, length)) = Record::first_of(&bytes[at..]) {
        found.push(record);
        at += length;
    }
    Ok((found, at as u64, bytes.len() as u64))
}

/// What is in a directory: of each series, who wrote which record; and from which record on a log must be whole.
#[derive(Debug, Default)]
pub struct Found {
    pub writers: BTreeMap<Series, BTreeMap<u64, u64>>,
    /// Of each series, the first record that may not be missing: those before were dropped.
    pub from: BTreeMap<Series, u64>,
    /// What is no whole record, or not where it belongs.
    pub wrong: Vec<String>,
}

/// Reads a directory, which may be written meanwhile: then what is at an end may not be whole.
pub fn look(dir: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for log in 0..LOGS {
        let series = Series::Log(log);
        let mut there = segments(dir, log)?;
        let mut writers = BTreeMap::new();
        // The newest first: older ones may be dropped meanwhile.
        while let Some((number, open)) = there.pop_last() {
            let read = match records(&dir.join(segment(log, number, open).as_str())) {
                // It was renamed, or dropped, a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match records(&dir.join(segment(log, number, false).as_str())) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        read => read?,
                    }
                }
                read => read?,
            };
            let (records, whole, length) = read;
            if whole < length {
                found.wrong.push(format!("log-{log}/{number:08}: no record at {whole} of {length} bytes"));
            }
            for (at, record) in (number * SEGMENT_RECORDS..).zip(records) {
                if (record.series, record.number) != (series, at) {
                    found.wrong.push(format!("log-{log}/{number:08}: {record:?} in the place of {at}"));
                }
                writers.insert(at, record.writer);
            }
        }
        // Whoever wrote meanwhile may have dropped as many more as it began.
        let newest = segments(dir, log)?.pop_last().map_or(0, |(number, _)| number);
        found.from.insert(series, (newest + 1).saturating_sub(SEGMENTS_KEPT) * SEGMENT_RECORDS);
        found.writers.insert(series, writers);
        let mut writers = BTreeMap::new();
        match records(&dir.join(state(log).as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => {
                let (records, whole, length) = read?;
                if whole < length || records.len() > 1 {
                    found.wrong.push(format!("state-{log}: a record of {whole} bytes, and {length} in all"));
                }
                writers.extend(records.first().map(|record| (record.number, record.writer)));
            }
        }
        found.writers.insert(Series::State(log), writers);
    }
    Ok(found)
}
