//! Plans as a line of text, to be kept and replayed: a seed alone would mean another history as soon as plans are drawn in another way.
//!
//! What a line does not say is as it was before there was a word for it, so that lines stay true when plans come to say more.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use paceline::sys::world::Policy;

use crate::plan::{CALLS, Event, Fault, Kind, Plan};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={} kind={}", self.seed, self.kind.name())?;
        match &self.policy {
            Policy::Random { change } => write!(f, " policy=random:{change}")?,
            Policy::Priorities { changes, within } => write!(f, " policy=priorities:{changes}:{within}")?,
        }
        write!(f, " followers={} writers={} pause={}", self.followers, self.writers, self.pause.as_micros())?;
        write!(f, " length={} file_clock={}", self.length.as_micros(), self.file_clock.as_micros())?;
        write!(f, " stalls={} commits={} large={}", self.stalls, self.commits, self.large)?;
        write!(f, " in_place={}", self.in_place)?;
        write!(f, " look_every={}", self.look_every.as_micros())?;
        for (name, is_set) in self.switches() {
            if is_set {
                write!(f, " {name}")?;
            }
        }
        self.events.iter().try_for_each(|event| write!(f, " {event}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}:{}:{}:", self.at.as_micros(), self.node, self.lasts.as_micros())?;
        match &self.fault {
            Fault::Freeze => f.write_str("freeze"),
            Fault::Kill => f.write_str("kill"),
            Fault::Stop => f.write_str("stop"),
            Fault::PowerCut => f.write_str("power-cut"),
            Fault::PowerCutOfAll => f.write_str("power-cut-of-all"),
            Fault::Cut { to, from } => write!(f, "cut:{}", u8::from(*to) | u8::from(*from) << 1),
            Fault::Slow { rate } => write!(f, "slow:{rate}"),
            Fault::Reset => f.write_str("reset"),
            Fault::DiskStall => f.write_str("disk-stall"),
            Fault::Errors { call, errno, probability, left } => write!(f, "errors:{call}:{errno}:{probability}:{left}"),
            Fault::DiskFull => f.write_str("disk-full"),
            Fault::CutFromCoordinator => f.write_str("cut-from-coordinator"),
        }
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut plan = Self::empty();
        for word in line.split_whitespace() {
            let wrong = || format!("{word:?} is nothing that a plan says");
            if let Some(event) = word.strip_prefix('@') {
                plan.events.push(event.parse().map_err(|error| format!("{}: {error}", wrong()))?);
                continue;
            }
            let Some((name, value)) = word.split_once('=') else {
                *plan.switch(word).ok_or_else(wrong)? = true;
                continue;
            };
            match name {
                "seed" => plan.seed = number(value)?,
                "kind" => plan.kind = Kind::ALL.into_iter().find(|kind| kind.name() == value).ok_or_else(wrong)?,
                "policy" => plan.policy = policy(value).ok_or_else(wrong)?,
                "followers" => plan.followers = number(value)?,
                "writers" => plan.writers = number(value)?,
                "pause" => plan.pause = micros(value)?,
                "length" => plan.length = micros(value)?,
                "stalls" => plan.stalls = number(value)?,
                "commits" => plan.commits = number(value)?,
                "large" => plan.large = number(value)?,
                "in_place" => plan.in_place = number(value)?,
                "look_every" => plan.look_every = micros(value)?,
                "file_clock" => plan.file_clock = micros(value)?,
                _ => return Err(wrong()),
            }
        }
        Ok(plan)
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(':');
        let mut next = || words.next().ok_or("it is too short".to_owned());
        let (at, node, lasts) = (micros(next()?)?, number(next()?)?, micros(next()?)?);
        let fault = match next()? {
            "freeze" => Fault::Freeze,
            "kill" => Fault::Kill,
            "stop" => Fault::Stop,
            "power-cut" => Fault::PowerCut,
            "power-cut-of-all" => Fault::PowerCutOfAll,
            "cut" => {
                let sides: u8 = number(next()?)?;
                Fault::Cut { to: sides & 1 != 0, from: sides & 2 != 0 }
            }
            "slow" => Fault::Slow { rate: number(next()?)? },
            "reset" => Fault::Reset,
            "disk-stall" => Fault::DiskStall,
            "errors" => {
                let name = next()?;
                let known = CALLS.iter().find(|(call, _)| *call == name);
                let (call, _) = known.ok_or(format!("{name} is no call that fails"))?;
                Fault::Errors { call, errno: number(next()?)?, probability: number(next()?)?, left: number(next()?)? }
            }
            "disk-full" => Fault::DiskFull,
            "cut-from-coordinator" => Fault::CutFromCoordinator,
            other => return Err(format!("{other} is no fault")),
        };
        Ok(Self { at, node, fault, lasts })
    }
}

fn number<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{text} is no such number"))
}

fn micros(text: &str) -> Result<Duration, String> {
    number(text).map(Duration::from_micros)
}

fn policy(text: &str) -> Option<Policy> {
    let mut words = text.split(':');
    match words.next()? {
        "random" => Some(Policy::Random { change: words.next()?.parse().ok()? }),
        "priorities" => {
            Some(Policy::Priorities { changes: words.next()?.parse().ok()?, within: words.next()?.parse().ok()? })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_what_its_text_says() {
        for seed in 0..2000 {
            let text = Plan::new(seed).to_string();
            assert_eq!(text.parse::<Plan>().map(|plan| plan.to_string()), Ok(text));
        }
        for wrong in ["seed=x", "what", "what=1", "@1:2", "@1:2:3:what", "kind=other"] {
            assert!(wrong.parse::<Plan>().is_err(), "{wrong}");
        }
    }
}
