//! Times as texts to numbers, without allocating: RFC 3339, and what Java and Python write in its place.

use arrow::datatypes::TimeUnit;

/// Units per second.
pub(crate) fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// A time of any kind that a text may be: as [`parse_iso`] has it, or a number since the Unix epoch in the unit, rounded down.
pub(crate) fn parse(text: &[u8], unit: TimeUnit) -> Option<i64> {
    parse_iso(text, unit).or_else(|| {
        let numeric = text
            .first()
            .is_some_and(|first| first.is_ascii_digit() || *first == b'-');
        let text = std::str::from_utf8(text).ok().filter(|_| numeric)?;
        let float = || text.parse::<f64>().ok().map(f64::floor);
        let range = -9.2e18..9.2e18;
        let whole = text.parse::<i64>().ok();
        whole.or_else(|| float().filter(|float| range.contains(float)).map(|float| float as i64))
    })
}

/// `2026-07-01T12:00:00.123456789+02:00` as time since the Unix epoch, rounded down to the unit. `None` when it is no such
/// time, or too far away for 64 bits of the unit. A leap second counts as the second before it. The offset may be written `+0200` or `+02`;
/// without one it is UTC.
fn parse_iso(text: &[u8], unit: TimeUnit) -> Option<i64> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    let marks = [(4, b"-"), (7, b"-"), (13, b":"), (16, b":")];
    let well_marked = marks.iter().all(|(at, mark)| head[*at] == mark[0]) && matches!(head[10], b'T' | b't' | b' ');
    if !well_marked {
        return None;
    }
    let year = i64::from(digits(&head[0..4])?);
    let (month, day) = (digits(&head[5..7])?, digits(&head[8..10])?);
    let (hour, minute, second) = (digits(&head[11..13])?, digits(&head[14..16])?, digits(&head[17..19])?);
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (nanoseconds, zone) = fraction(rest)?;
    let offset_s = zone_offset_s(zone)?;
    let day_s = i64::from(hour * 3600 + minute * 60 + second.min(59));
    let seconds = days_from_epoch(year, month, day) * 86_400 + day_s - offset_s;
    let per_second = per_second(unit);
    seconds
        .checked_mul(per_second)?
        .checked_add(i64::from(nanoseconds) / (1_000_000_000 / per_second))
}

fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0'))
    })
}

/// Nanoseconds of `.123`, further digits cut off, and what follows.
fn fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    let Some(after_point) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let length = after_point.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = after_point.split_at(length);
    let kept = &fraction[..length.min(9)];
    let nanoseconds = digits(kept)? * 10u32.pow(9 - kept.len() as u32);
    (length > 0).then_some((nanoseconds, rest))
}

fn zone_offset_s(zone: &[u8]) -> Option<i64> {
    match zone {
        b"" | b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, rest @ ..] => {
            let minutes = match rest {
                [] => 0,
                [b':', minutes @ ..] | minutes if minutes.len() == 2 => digits(minutes)?,
                _ => return None,
            };
            let hours = digits(&[*h1, *h2])?;
            let offset_s = i64::from(hours * 3600 + minutes * 60);
            let valid = hours <= 23 && minutes <= 59;
            valid.then_some(if *sign == b'-' { -offset_s } else { offset_s })
        }
        _ => None,
    }
}

fn days_in_month(year: i64, month: u32) -> u32 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; years are counted from March, so that the leap day is last.
fn days_from_epoch(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let century_days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    century_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::testing::cases(256))]

        #[test]
        fn agrees_with_jiff(second in -62_000_000_000i64..253_000_000_000, nanosecond in 0i32..1_000_000_000) {
            let timestamp = jiff::Timestamp::new(second, 0).unwrap()
                + jiff::SignedDuration::from_nanos(i64::from(nanosecond));
            let text = timestamp.to_string();
            prop_assert_eq!(parse(text.as_bytes(), TimeUnit::Second), Some(second));
            prop_assert_eq!(
                parse(text.as_bytes(), TimeUnit::Millisecond),
                Some(second * 1000 + i64::from(nanosecond) / 1_000_000)
            );
            prop_assert_eq!(
                parse(text.as_bytes(), TimeUnit::Nanosecond).map(i128::from),
                Some(timestamp.as_nanosecond()).filter(|ns| i64::try_from(*ns).is_ok())
            );
        }

        #[test]
        fn never_panics(text: Vec<u8>) {
            parse(&text, TimeUnit::Nanosecond);
        }
    }

    #[test]
    fn forms() {
        let ms = |text: &str| parse(text.as_bytes(), TimeUnit::Millisecond);
        assert_eq!(ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(ms("2000-02-29T23:59:60.5z"), ms("2000-02-29T23:59:59.5Z"));
        assert_eq!(ms("2026-07-01 12:00:00.1239+02:00"), ms("2026-07-01T10:00:00.123Z"));
        assert_eq!(ms("2026-07-01T12:00:00-00:30"), ms("2026-07-01T12:30:00Z"));
        for same in [
            "2026-07-01T14:00:00+0200",
            "2026-07-01 14:00:00.0+02",
            "2026-07-01T12:00:00",
            "2026-07-01 12:00:00.000",
        ] {
            assert_eq!(ms(same), ms("2026-07-01T12:00:00Z"), "{same}");
        }
        for (number, read) in [
            ("1700000000123", 1_700_000_000_123),
            ("-1", -1),
            ("-0.5", -1),
            ("1.7e3", 1_700),
        ] {
            assert_eq!(ms(number), Some(read), "{number}");
        }
        let wrong = [
            "2026-07-01",
            "2026-07-01T12:00",
            "1e30",
            "-",
            "12 s",
            "nan",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-07-01T24:00:00Z",
            "2026-07-01T12:00:00.Z",
            "2026-07-01T12:00:00+020",
            "2026-07-01T12:00:00+02:",
            "2026-07-01T12:00:00+02:000",
            "2026-07-01T12:00:00+24:00",
            "2026-07-01T12:00:00Z ",
            "+026-07-01T12:00:00Z",
            "",
        ];
        for text in wrong {
            assert_eq!(ms(text), None, "{text}");
        }
    }
}
