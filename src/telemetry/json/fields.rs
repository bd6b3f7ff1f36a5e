//! Reading objects of known fields, in whatever order they come. Of equal keys the last counts.

use arrow::datatypes::TimeUnit;

use super::{RawString, Scanner};
use crate::{error::Fault, time};

/// Shows every field of the object that begins here; `read` passes the value.
pub(crate) fn each_field<'a>(
    scanner: &mut Scanner<'a>,
    mut read: impl FnMut(&[u8], &mut Scanner<'a>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    scanner.begin_object()?;
    let mut first = true;
    while let Some(key) = scanner.next_key(first)? {
        first = false;
        let mut unescaped = Vec::new();
        let name = key.text(&mut unescaped)?;
        scanner.token();
        read(name.as_bytes(), scanner).map_err(|fault| fault.in_field(name))?;
    }
    Ok(())
}

/// Shows every element of the array that begins here; `read` passes it.
pub(crate) fn each_element<'a>(
    scanner: &mut Scanner<'a>,
    mut read: impl FnMut(&mut Scanner<'a>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if scanner.token() != Some(b'[') {
        return Err(scanner.expected("an array"));
    }
    scanner.pass_byte();
    let mut first = true;
    while scanner.next_element(first)? {
        first = false;
        scanner.token();
        read(scanner)?;
    }
    Ok(())
}

/// A string, its UTF-8 checked; `None` for null.
pub(crate) fn string_or_null<'a>(scanner: &mut Scanner<'a>) -> Result<Option<RawString<'a>>, Fault> {
    match scanner.token() {
        Some(b'n') => scanner.literal("null").map(|()| None),
        Some(b'"') => {
            let string = scanner.string()?;
            string.check()?;
            Ok(Some(string))
        }
        _ => Err(scanner.expected("a string")),
    }
}

/// RFC 3339, or a number in the unit since 1970, rounded down; `None` for null.
pub(crate) fn time_or_null(scanner: &mut Scanner<'_>, unit: TimeUnit) -> Result<Option<i64>, Fault> {
    let from = scanner.clone();
    let wrong = || from.fault("expected a time like 2026-07-01T12:00:00.000Z, or a number since 1970");
    match scanner.token() {
        Some(b'n') => scanner.literal("null").map(|()| None),
        Some(b'"') => {
            let mut scratch = Vec::new();
            let text = scanner.string()?.bytes(&mut scratch)?;
            time::parse(text, unit).map(Some).ok_or_else(wrong)
        }
        Some(b'-' | b'0'..=b'9') => {
            let number = scanner.number()?;
            number.to_i64_floor().map(Some).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// Shows every entry of an object of strings, or of what can be told as strings: numbers and booleans as they are written.
pub(crate) fn each_entry<'a>(
    scanner: &mut Scanner<'a>,
    mut entry: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if scanner.token() == Some(b'n') {
        return scanner.literal("null");
    }
    let mut scratch = Vec::new();
    each_field(scanner, |key, scanner| match scanner.token() {
        Some(b'"') => {
            let string = scanner.string()?;
            string.check()?;
            entry(key, Some(string.bytes(&mut scratch)?))
        }
        Some(b'n') => {
            scanner.literal("null")?;
            entry(key, None)
        }
        Some(b'{' | b'[') => Err(scanner.expected("a string")),
        _ => {
            let before = scanner.rest();
            scanner.skip_value()?;
            let written = &before[..before.len() - scanner.rest().len()];
            entry(key, Some(written))
        }
    })
}
