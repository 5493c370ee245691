//! Who stands for election, and what each candidate says that it has.

use std::fmt;
use std::str::FromStr;

use crate::position::{EpochPosition, number};
use crate::types::{InvalidValue, NodeId, shorten};

/// What a candidate brings to an election: how far its directory has come.
///
/// As text, the term and the position, or `-`, with a blank between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bid {
    /// Of the elected leader that the candidate knew of when it told this: from then on it applies nothing of those elected before. 0 if it knew of none.
    pub term: u64,
    /// `None` if it does not know: it has not followed a leader that says its term.
    pub position: Option<EpochPosition>,
}

impl fmt::Display for Bid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(position) => write!(f, "{} {position}", self.term),
            None => write!(f, "{} -", self.term),
        }
    }
}

impl FromStr for Bid {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let parts = || {
            let (term, position) = text.split_once(' ')?;
            let position = if position == "-" { None } else { Some(position.parse().ok()?) };
            Some(Self { term: number(term)?, position })
        };
        parts().ok_or_else(|| InvalidValue::new("bid", shorten(text), "it is TERM EPOCH:POSITION, or TERM -"))
    }
}

/// Somebody who leads, or is elected when all before are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id, if what it announced tells it.
    pub id: Option<NodeId>,
    /// The term that it leads in, or will: greater than that of those before it.
    pub term: u64,
    /// What it has; `None`: it does not say, as LavinMQ's nodes and those of earlier versions.
    pub bid: Option<Bid>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StreamPosition;

    #[test]
    fn a_bid_comes_back_from_its_text_and_nonsense_does_not() {
        let position = Some(EpochPosition { epoch: 7, position: StreamPosition(900) });
        for (bid, text) in [(Bid { term: 9, position }, "9 7:900"), (Bid { term: 0, position: None }, "0 -")] {
            assert_eq!((bid.to_string().as_str(), text.parse().unwrap()), (text, bid));
        }
        for bad in ["", "9", "9 ", "- 7:900", "9 7", "9  7:900", "+9 7:900", "9 7:900 ", "x -"] {
            assert!(bad.parse::<Bid>().is_err(), "{bad:?} was taken");
        }
    }
}
