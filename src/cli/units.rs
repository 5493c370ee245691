//! Sizes, durations and latencies, as people write and read them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const SIZES: [(&str, u64); 11] = [
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
];

const DURATIONS_MS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// More digits after the point than anybody means.
const DECIMALS_MAX: usize = 9;

/// Bytes written as `64MiB`, `1.5GB` or `4096`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let remedy = "write a number and a unit: 4096, 512KiB, 1.5MiB, 64MiB, 2GiB, 1TiB (or kB, MB, GB, TB)";
    parse(text, &SIZES).map_err(|fault| format!("{fault}; {remedy}"))
}

/// A time written as `500ms`, `1.5s`, `2m`, `1h` or `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let remedy = "write a number and a unit: 500ms, 1.5s, 2m, 1h, 7d";
    parse(text, &DURATIONS_MS).map(Duration::from_millis).map_err(|fault| format!("{fault}; {remedy}"))
}

/// In the smallest unit; parts of it are left out.
fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, &'static str> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count());
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.contains('.') {
        return Err("it does not begin with a number");
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit.trim_start()) else {
        return Err(if unit.is_empty() { "it has no unit" } else { "its unit is unknown" });
    };
    if decimals.len() > DECIMALS_MAX {
        return Err("it has too many digits after the point");
    }
    let whole: u64 = whole.parse().map_err(|_| "it is too large")?;
    let decimals: u128 = format!("{decimals:0<DECIMALS_MAX$}").parse().map_err(|_| "it is no number")?;
    let part = decimals * u128::from(*factor) / 10_u128.pow(u32::try_from(DECIMALS_MAX).unwrap_or_default());
    let value = u128::from(whole) * u128::from(*factor) + part;
    if value == 0 && decimals > 0 {
        return Err("it is too small");
    }
    u64::try_from(value).map_err(|_| "it is too large")
}

/// A share written as `90%` or `0.9`.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim_end().parse().map(|percent: f64| percent / 100.0),
        None => text.parse(),
    };
    share.ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "write a share, such as 90% or 0.9".to_owned())
}

/// `HOST:PORT` to listen at, as it was written; port 0 is any that is free.
pub(crate) fn parse_address(text: &str) -> Result<String, String> {
    let remedy = "write HOST:PORT, such as 127.0.0.1:5679, [::1]:5679 or db1:5679";
    check_address(text).map_err(|fault| format!("{fault}; {remedy}"))?;
    Ok(text.to_owned())
}

/// `HOST:PORT` to connect to; it may also be written as nodes announce it, `tcp://HOST:PORT`.
pub(crate) fn parse_leader(text: &str) -> Result<String, String> {
    let remedy = "write HOST:PORT, such as db1:5679, 10.0.0.1:5679 or [::1]:5679";
    let address = text.strip_prefix("tcp://").map_or(text, |rest| rest.strip_suffix('/').unwrap_or(rest));
    match check_address(address) {
        Ok(0) => Err(format!("nobody can be reached at port 0; {remedy}")),
        Ok(_) => Ok(address.to_owned()),
        Err(fault) => Err(format!("{fault}; {remedy}")),
    }
}

/// Refuses what could never be resolved; returns the port.
fn check_address(text: &str) -> Result<u16, &'static str> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.port());
    }
    if text.contains("://") {
        return Err("it begins with a scheme");
    }
    let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
    if host.is_empty() || port.starts_with('+') {
        return Err("host or port is missing or wrong");
    }
    let port = port.parse().map_err(|_| "host or port is missing or wrong")?;
    if !is_host_name(host) {
        return Err("its host is neither a name nor an IP address (IPv6 is written in brackets)");
    }
    Ok(port)
}

fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let looks_like_ipv4 = host.split('.').count() == 4 && host.split('.').all(is_number);
    host.len() <= 253 && host.split('.').all(is_label) && (!looks_like_ipv4 || host.parse::<Ipv4Addr>().is_ok())
}

/// Bytes with a unit: `0 B`, `1.5 MiB`.
pub(crate) fn show_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1023.95 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A latency with a unit and three digits: `85 ns`, `1.20 µs`, `38.1 ms`.
pub(crate) fn show_latency(nanoseconds: u64) -> String {
    let mut value = nanoseconds as f64;
    if value < 999.5 {
        return format!("{nanoseconds} ns");
    }
    for unit in ["µs", "ms", "s"] {
        value /= 1000.0;
        if value < 999.5 || unit == "s" {
            let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
            return format!("{value:.digits$} {unit}");
        }
    }
    String::new()
}

/// Megabytes a second: `123.4 MB/s`.
pub(crate) fn show_rate(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(0.001);
    format!("{:.1} MB/s", bytes as f64 / 1e6 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_as_people_write_them() {
        for (text, share) in [("90%", 0.9), ("0.9", 0.9), ("1", 1.0), ("100 %", 1.0), ("0", 0.0)] {
            assert!((parse_share(text).unwrap() - share).abs() < 1e-9, "{text}");
        }
        for bad in ["", "%", "90", "101%", "-1", "NaN", "inf%", "much"] {
            assert!(parse_share(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("3 kB", 3000), ("1TiB", 1 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, bytes) in [("1.5MiB", 3 << 19), ("0.25 GB", 250_000_000), ("1.0", 1), ("0.1KiB", 102)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
        let odd = [".5MiB", "1.MiB", "1.2.3MiB", "1,5MiB", "1.0000000001GiB", "0.5B", "16777216.5TiB"];
        for bad in ["", "MiB", "64 mib", "-1", "99999999999TiB", "99999999999999999999", "6x"].into_iter().chain(odd) {
            let error = parse_size(bad).unwrap_err();
            assert!(error.contains("64MiB"), "{bad}: {error} names no remedy");
        }
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, ms) in
            [("500ms", 500), ("3s", 3_000), ("1.5s", 1_500), ("2m", 120_000), ("1h", 3_600_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "3", "s", "3 sec", "0.5ms", "-1s", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn addresses_need_host_and_port() {
        for good in ["127.0.0.1:0", "[::1]:5679", "[fe80::1%2]:5679", "db1:5679", "my_db-1.example.:1", "localhost:1"] {
            assert_eq!(parse_address(good).as_deref(), Ok(good));
        }
        let long = format!("{}:1", "x".repeat(64));
        let unresolvable = ["db1..lan:1", "db 1:1", "300.0.0.1:1", "::1:5679", "tcp://db1:5679", "-:+1", &long];
        for bad in ["", "db1", ":1", "db1:", "db1:70000", "db1:x"].into_iter().chain(unresolvable) {
            let error = parse_address(bad).expect_err(bad);
            assert!(error.contains("write HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_leader_is_also_read_as_nodes_announce_it() {
        for (text, address) in [("db1:5679", "db1:5679"), ("tcp://db1:5679", "db1:5679"), ("tcp://[::1]:7/", "[::1]:7")]
        {
            assert_eq!(parse_leader(text).as_deref(), Ok(address));
        }
        for bad in ["http://db1:5679", "tcp://db1", "tcp://tcp://db1:1", "db1:0", "db1:5679/"] {
            let error = parse_leader(bad).expect_err(bad);
            assert!(error.contains("write HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn values_are_shown_with_three_digits_or_so() {
        let bytes =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"), (u64::MAX, "16777216.0 TiB")];
        for (value, text) in bytes {
            assert_eq!(show_bytes(value), text);
        }
        for (value, text) in [(85, "85 ns"), (1_200, "1.20 µs"), (38_100_000, "38.1 ms"), (999_600, "1.00 ms")] {
            assert_eq!(show_latency(value), text);
        }
        assert_eq!(show_latency(150_000), "150 µs");
        assert_eq!(show_latency(2_500_000_000), "2.50 s");
    }
}
