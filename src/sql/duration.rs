//! Lengths of time as people write them: `10 s`, `1 minute 30 seconds`, `500 milliseconds`.

use crate::diagnostic::nearest;

/// Longer than any window, timeout or cooldown that makes sense; keeps arithmetic on milliseconds from overflowing.
pub(crate) const MAX_MS: i64 = 366 * DAY_MS;
const DAY_MS: i64 = 86_400_000;

/// Milliseconds, or why it is none.
pub fn parse(text: &str) -> Result<i64, String> {
    let mut rest = text.trim();
    let (negative, unsigned) = match rest.strip_prefix('-') {
        Some(unsigned) => (true, unsigned.trim_start()),
        None => (false, rest),
    };
    rest = unsigned;
    if rest.is_empty() {
        return Err("a length of time is missing".into());
    }
    let mut total_ns: i128 = 0;
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after.trim_start(), |c| c.is_alphabetic());
        if number.is_empty() {
            return Err(format!("`{text}` is not a length of time"));
        }
        if unit.is_empty() {
            return Err(format!("`{text}` has no unit"));
        }
        let unit_ns = unit_ns(unit).ok_or_else(|| match unit.to_ascii_lowercase().as_str() {
            "month" | "months" | "year" | "years" => format!("a {unit} has no fixed length; use days"),
            _ => format!("`{unit}` is not a unit of time"),
        })?;
        let part = scaled(number, unit_ns).ok_or_else(|| format!("`{number}` is not a number of {unit}"))?;
        total_ns = total_ns.saturating_add(part);
        rest = after.trim_start();
    }
    if total_ns % 1_000_000 != 0 {
        return Err(format!("`{text}` is not a whole number of milliseconds"));
    }
    let ms = i64::try_from(total_ns / 1_000_000).ok().filter(|ms| *ms <= MAX_MS);
    let ms = ms.ok_or_else(|| format!("`{text}` is longer than 366 days"))?;
    Ok(if negative { -ms } else { ms })
}

/// For people: `1 min`, `90 s`, `250 ms`.
pub fn display(ms: i64) -> String {
    for (unit_ms, unit) in [(DAY_MS, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")] {
        if ms != 0 && ms % unit_ms == 0 {
            return format!("{} {unit}", ms / unit_ms);
        }
    }
    format!("{ms} ms")
}

/// As INTERVAL is written with them.
pub(crate) const UNITS: [&str; 14] = [
    "MILLISECOND",
    "MILLISECONDS",
    "SECOND",
    "SECONDS",
    "MINUTE",
    "MINUTES",
    "HOUR",
    "HOURS",
    "DAY",
    "DAYS",
    "WEEK",
    "WEEKS",
    "MICROSECOND",
    "NANOSECOND",
];

/// The unit that the first word of a length of time seems to mean which is none.
pub(crate) fn misspelt(text: &str) -> Option<String> {
    let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let wrong = words.into_iter().find(|word| !is_unit(word))?;
    nearest(wrong, UNITS).map(str::to_lowercase)
}

pub(crate) fn is_unit(word: &str) -> bool {
    unit_ns(word).is_some()
        || matches!(
            word.to_ascii_lowercase().as_str(),
            "month" | "months" | "year" | "years"
        )
}

fn unit_ns(unit: &str) -> Option<i128> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "ns" | "nanosecond" | "nanoseconds" => 1,
        "us" | "µs" | "microsecond" | "microseconds" => 1_000,
        "ms" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000_000,
        "h" | "hour" | "hours" => 3_600_000_000_000,
        "d" | "day" | "days" => 86_400_000_000_000,
        "w" | "week" | "weeks" => 604_800_000_000_000,
        _ => return None,
    })
}

/// A decimal number times a unit, in nanoseconds; digits beyond a nanosecond are no number.
fn scaled(number: &str, unit_ns: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || number.len() > 18 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits = format!("{whole}{fraction}").parse::<i128>().ok()?;
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let product = digits.checked_mul(unit_ns)?;
    (product % scale == 0).then_some(product / scale)
}

fn split(text: &str, accept: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !accept(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, ms) in [
            ("10 SECOND", 10_000),
            ("1 minute", 60_000),
            ("500 milliseconds", 500),
            ("1 minute 30 seconds", 90_000),
            ("30s", 30_000),
            ("0.5 s", 500),
            ("1h30m", 5_400_000),
            ("-5 s", -5_000),
        ] {
            assert_eq!(parse(text), Ok(ms), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "1 month",
            "1 parsec",
            "1.0000001 s",
            "9999999999 days",
            "1..5 s",
            "5 us",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
