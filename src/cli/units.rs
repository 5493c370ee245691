//! Sizes, durations and latencies, as people write and read them.

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

const DURATIONS_MS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Bytes written as `64MiB`, `10MB` or `4096`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let remedy = "write a whole number and a unit: 4096, 512KiB, 64MiB, 2GiB, 1TiB (or kB, MB, GB, TB)";
    parse(text, &SIZES).map_err(|fault| format!("{fault}; {remedy}"))
}

/// A time written as `500ms`, `3s`, `2m` or `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let remedy = "write a whole number and a unit: 500ms, 3s, 2m, 1h";
    parse(text, &DURATIONS_MS).map(Duration::from_millis).map_err(|fault| format!("{fault}; {remedy}"))
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, &'static str> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("it does not begin with a whole number");
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit.trim_start()) else {
        return Err(if unit.is_empty() { "it has no unit" } else { "its unit is unknown" });
    };
    let number: u64 = number.parse().map_err(|_| "it is too large")?;
    number.checked_mul(*factor).ok_or("it is too large")
}

/// `HOST:PORT`, as it was written.
pub(crate) fn parse_address(text: &str) -> Result<String, String> {
    let remedy = "write HOST:PORT, such as 127.0.0.1:5679, [::1]:5679 or db1:5679";
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        Some(_) => Err(format!("host or port is missing or wrong; {remedy}")),
        None => Err(format!("it has no port; {remedy}")),
    }
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
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("3 kB", 3000), ("1TiB", 1 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "64 mib", "1.5GiB", "-1", "99999999999TiB", "99999999999999999999", "6x"] {
            let error = parse_size(bad).unwrap_err();
            assert!(error.contains("64MiB"), "{bad}: {error} names no remedy");
        }
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, ms) in [("500ms", 500), ("3s", 3_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "3", "s", "3 sec", "1.5s", "-1s", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn addresses_need_host_and_port() {
        for good in ["127.0.0.1:0", "[::1]:5679", "db1:5679"] {
            assert_eq!(parse_address(good).as_deref(), Ok(good));
        }
        for bad in ["", "db1", ":1", "db1:", "db1:70000", "db1:x"] {
            assert!(parse_address(bad).is_err(), "{bad} was taken");
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
