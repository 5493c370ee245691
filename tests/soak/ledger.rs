//! What was acknowledged, kept outside the nodes, and whether it is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::records::{Found, SEGMENT_RECORDS, SEGMENTS_KEPT, Series};

/// What one node has said, from where it was last read.
pub struct Reader {
    file: File,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Reader {
    pub fn open(path: &Path) -> Self {
        let file = File::options().read(true).append(true).create(true).open(path).unwrap();
        Self { file, rest: Vec::new() }
    }

    /// The whole lines since.
    pub fn lines(&mut self) -> Vec<String> {
        self.file.read_to_end(&mut self.rest).unwrap();
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<_> = self.rest.drain(..end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

/// A thread of a leader in one term.
struct Writer {
    node: usize,
    series: u32,
    first_ended: u64,
    last_began: u64,
}

/// An append that took long, at a node.
pub struct Slow {
    pub node: usize,
    pub began: u64,
    pub took: Duration,
}

#[derive(Default)]
pub struct Ledger {
    /// Of each series, who wrote the records that were acknowledged; as many as a log keeps.
    acked: BTreeMap<Series, BTreeMap<u64, u64>>,
    writers: BTreeMap<u64, Writer>,
    /// The node that acknowledged last, by one of which writers, when.
    pub last: Option<Last>,
    pub commits: u64,
    pub records: u64,
    /// Commits that were not confirmed, by why.
    pub not: BTreeMap<String, u64>,
    pub longest: Duration,
    pub slow: Vec<Slow>,
    /// Who writes nothing, while which pause.
    idle: BTreeMap<(String, u32), u64>,
    /// Of all.
    pub lost: u64,
    pub terms: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Last {
    pub node: usize,
    pub began: u64,
    pub ended: u64,
}

impl Ledger {
    /// Takes in what a node has said since. An error: it must not be so.
    pub fn read(&mut self, node: usize, reader: &mut Reader) -> Result<(), String> {
        for line in reader.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["ack", series, first, last, writer, began, ended] => {
                    let number = |word: &str| word.parse::<u64>().unwrap();
                    let series = Series::of(series.parse().unwrap());
                    let records = (number(first), number(last));
                    self.acknowledged(node, series, records, number(writer), (number(began), number(ended)))?;
                }
                ["idle", pause, log, writer] => {
                    self.idle.insert((pause.to_owned(), log.parse().unwrap()), writer.parse().unwrap());
                }
                ["slow", began, took] => {
                    let took = Duration::from_nanos(took.parse().unwrap());
                    self.slow.push(Slow { node, began: began.parse().unwrap(), took });
                }
                ["longest", took] => {
                    self.longest = self.longest.max(Duration::from_nanos(took.parse().unwrap()));
                }
                ["not", ..] => *self.not.entry(words[1..].join(" ")).or_default() += 1,
                _ => return Err(format!("node {} said {line:?}", node + 1)),
            }
        }
        Ok(())
    }

    fn acknowledged(
        &mut self,
        node: usize,
        series: Series,
        (first, last): (u64, u64),
        writer: u64,
        (began, ended): (u64, u64),
    ) -> Result<(), String> {
        self.commits += 1;
        self.records += last - first + 1;
        if self.last.is_none_or(|last| last.ended < ended) {
            self.last = Some(Last { node, began, ended });
        }
        let acked = self.acked.entry(series).or_default();
        for record in first..=last {
            if let Some(other) = acked.insert(record, writer)
                && other != writer
            {
                self.lost += 1;
                let (one, two) = (self.writers[&other].node + 1, node + 1);
                return Err(format!(
                    "{series:?}: record {record} was acknowledged by node {one}, and then another one by node {two}: it was lost, or two led"
                ));
            }
        }
        let kept = match series {
            Series::Log(_) => {
                let newest = acked.last_key_value().map_or(0, |(record, _)| record / SEGMENT_RECORDS);
                (newest + 1).saturating_sub(SEGMENTS_KEPT) * SEGMENT_RECORDS
            }
            Series::State(_) => acked.last_key_value().map_or(0, |(record, _)| record.saturating_sub(1000)),
        };
        *acked = acked.split_off(&kept);
        let mut new = false;
        let known = self.writers.entry(writer).or_insert_with(|| {
            new = true;
            Writer { node, series: series.number() / 2, first_ended: ended, last_began: began }
        });
        known.first_ended = known.first_ended.min(ended);
        known.last_began = known.last_began.max(began);
        let (first_ended, last_began, log) = (known.first_ended, known.last_began, known.series);
        self.terms += u64::from(new && log == 0);
        self.two_lead(node, first_ended, last_began)
    }

    /// Of two leaders of which one acknowledged something, the earlier one acknowledges nothing more that it began after that.
    fn two_lead(&self, node: usize, first_ended: u64, last_began: u64) -> Result<(), String> {
        for other in self.writers.values().filter(|other| other.node != node) {
            let (earlier, later, their) = if other.first_ended < first_ended {
                (other.node, node, (other.last_began, first_ended))
            } else {
                (node, other.node, (last_began, other.first_ended))
            };
            if their.0 > their.1 {
                let by = Duration::from_nanos(their.0 - their.1);
                return Err(format!(
                    "two lead: node {} acknowledged what it began {by:.3?} after node {} had acknowledged something",
                    earlier + 1,
                    later + 1
                ));
            }
        }
        Ok(())
    }

    /// Whether all logs of the leader rest in this pause.
    pub fn is_idle(&self, pause: &str) -> bool {
        let resting = (0..crate::records::LOGS).filter(|log| self.idle.contains_key(&(pause.to_owned(), *log)));
        resting.count() == crate::records::LOGS as usize
    }

    /// What was acknowledged so far and is not in a directory as it was found after that.
    pub fn missing_in(&self, found: &Found) -> Vec<String> {
        let mut missing = Vec::new();
        for (series, acked) in &self.acked {
            let there = &found.writers[series];
            let from = match series {
                Series::Log(_) => found.from[series],
                // Only the last one is there.
                Series::State(_) => there.first_key_value().map_or(0, |(record, _)| *record),
            };
            for (record, writer) in acked.range(from..) {
                let problem = match there.get(record) {
                    Some(found) if found == writer => continue,
                    Some(_) => "is another one",
                    None => "is not there",
                };
                missing.push(format!("{series:?}: record {record} {problem}"));
            }
        }
        missing
    }

    pub fn leader(&self) -> Option<usize> {
        self.last.map(|last| last.node)
    }
}
