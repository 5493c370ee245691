//! What people type, or others record as text.

use std::fmt::Display;
use std::str::FromStr;

use paceline::coordinator::InSyncSet;
use paceline::coordinator::etcd::EtcdEndpoint;
use paceline::{DataSetId, NodeId, RelPath, fuzzing};

use paceline_fuzz::{for_each_byte, input};

use crate::units;

/// What is read comes back as it is shown.
fn comes_back<T: FromStr + Display + PartialEq + std::fmt::Debug>(text: &str)
where
    T::Err: Display + std::fmt::Debug,
{
    match text.parse::<T>() {
        Ok(value) => assert_eq!(value.to_string().parse::<T>().unwrap(), value),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub fn text(input: &[u8]) {
    let rest = &mut &input[..];
    let kind = input::byte(rest);
    let Ok(text) = std::str::from_utf8(rest) else { return };
    // Automata of globs are the largest by far.
    let bytes_max = if kind % 8 == 7 { 1 << 16 } else { 256 };
    for_each_byte(input, bytes_max, || match kind % 8 {
        0 => comes_back::<NodeId>(text),
        1 => comes_back::<DataSetId>(text),
        2 => comes_back::<InSyncSet>(text),
        3 => {
            comes_back::<EtcdEndpoint>(text);
            let _ = EtcdEndpoint::parse_list(text).map_err(|error| error.to_string());
        }
        4 => {
            comes_back::<RelPath>(text);
            if let Ok(path) = RelPath::new(text) {
                let below = path.below(std::path::Path::new("/data"));
                assert!(below.starts_with("/data") && below.components().count() > 2);
                assert!(below.components().all(|part| part != std::path::Component::ParentDir));
            }
        }
        5 => measures(text),
        6 => {
            let _ = (units::parse_address(text), units::parse_share(text));
            if let Ok(leader) = units::parse_leader(text) {
                assert_eq!(units::parse_leader(&leader), Ok(leader));
            }
        }
        _ => {
            let mut lines = text.lines();
            let Some(path) = lines.next().and_then(|name| RelPath::new(name).ok()) else { return };
            let patterns: Vec<_> = lines.map(str::to_owned).collect();
            let _ = fuzzing::exclude(&patterns, &path).map_err(|error| error.to_string());
        }
    });
}

fn measures(text: &str) {
    if let Ok(bytes) = units::parse_size(text) {
        assert_eq!(units::parse_size(&bytes.to_string()), Ok(bytes));
        assert!(units::show_bytes(bytes).len() < 32 && units::show_latency(bytes).len() < 32);
    }
    if let Ok(duration) = units::parse_duration(text) {
        let millis = duration.as_millis();
        assert_eq!(units::parse_duration(&format!("{millis}ms")), Ok(duration));
        assert!(!units::show_rate(u64::MAX, duration).is_empty());
    }
}
