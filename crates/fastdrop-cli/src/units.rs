//! Sizes and times as people type and read them.

use std::time::Duration;

/// A size: digits, and K, M, G or T for powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let text = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match text.chars().last() {
        Some('k') => (&text[..text.len() - 1], 10),
        Some('m') => (&text[..text.len() - 1], 20),
        Some('g') => (&text[..text.len() - 1], 30),
        Some('t') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "not a size such as 64K, 20M or 1G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// A size of at least one byte.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("0 would never end".into()),
        rate => Ok(rate),
    }
}

/// How often to make checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint(pub(crate) Option<u64>);

/// A size of at least 1 MiB, or `off`.
pub(crate) fn parse_checkpoint(text: &str) -> Result<Checkpoint, String> {
    if text == "off" {
        return Ok(Checkpoint(None));
    }
    match parse_size(text)? {
        0..0x10_0000 => Err("less than 1M, or off".into()),
        size => Ok(Checkpoint(Some(size))),
    }
}

/// A time such as `7d`, `12h` or `30s`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// A time of at most a day that is not 0: a bound for waiting.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    let day = Duration::from_secs(24 * 3600);
    match parse_duration(text)? {
        time if time.is_zero() || time > day => Err("it is not within 1ms and 1day".into()),
        time => Ok(time),
    }
}

/// Bytes with three digits and a unit.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 999.5 || unit == "TiB" {
            return match unit {
                "B" => format!("{count} B"),
                _ if value < 9.995 => format!("{value:.2} {unit}"),
                _ if value < 99.95 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit takes every value")
}

/// Seconds with as many digits as mean something.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{:.0} ms", time.as_secs_f64() * 1e3),
        1..60 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{}:{:02} min", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("20M"), Ok(20 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert_eq!(parse_size("4KiB"), Ok(4096));
        for bad in ["", "M", "-1", "1.5G", "99999999999T", "1X"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_rate("0").is_err());
        assert_eq!(parse_checkpoint("off"), Ok(Checkpoint(None)));
        assert!(parse_checkpoint("0").is_err());
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        let shown: Vec<_> = [0, 999, 1000, 1 << 20, 10 << 30, 5 << 50].map(bytes).into();
        assert_eq!(shown, ["0 B", "999 B", "0.98 KiB", "1.00 MiB", "10.0 GiB", "5120 TiB"]);
    }
}
