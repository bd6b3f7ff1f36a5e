//! JSON, read in place, as strict as `serde_json`: every escape, every number, every string's UTF-8, also in what is
//! skipped. Eight bytes at a time where it pays.

use std::str;

use crate::error::Fault;

/// Nested arrays and objects; deeper ones are an attack, not telemetry.
const DEPTH_MAX: usize = 127;

/// Reads one document from its first byte to its last.
#[derive(Clone)]
pub(crate) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A string as it stands between its quotes.
#[derive(Clone, Copy)]
pub(crate) struct RawString<'a> {
    pub raw: &'a [u8],
    pub escaped: bool,
}

/// A number: `mantissa × 10^exponent`, unless `exact` is false because it has more digits than fit.
#[derive(Clone, Copy)]
pub(crate) struct Number<'a> {
    raw: &'a [u8],
    negative: bool,
    mantissa: u64,
    exponent: i32,
    exact: bool,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

impl<'a> Scanner<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline(always)]
    pub fn position(&self) -> usize {
        self.at
    }

    #[inline(always)]
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Passes `literal` if it stands here.
    #[inline(always)]
    pub fn pass(&mut self, literal: &[u8]) -> bool {
        let passed = self.rest().starts_with(literal);
        self.at += if passed { literal.len() } else { 0 };
        passed
    }

    /// Passes bytes that the caller has compared.
    #[inline(always)]
    pub fn advance(&mut self, count: usize) {
        self.at += count;
    }

    /// Passes one byte, which the caller has seen.
    #[inline(always)]
    pub fn pass_byte(&mut self) {
        self.at += 1;
    }

    /// The next byte as it stands.
    #[inline(always)]
    pub fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The next byte that is not white space.
    #[inline(always)]
    pub fn token(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                other => return other,
            }
        }
    }

    #[inline(always)]
    pub fn fault(&self, reason: impl Into<std::borrow::Cow<'static, str>>) -> Fault {
        Fault::at(reason, self.rest())
    }

    /// A fault that says what stands here instead of `expected`.
    #[cold]
    pub fn expected(&mut self, expected: &str) -> Fault {
        let found = match self.token() {
            None => "the end",
            Some(b'"') => "a string",
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b't' | b'f') if self.rest().starts_with(b"true") || self.rest().starts_with(b"false") => "a boolean",
            Some(b'n') if self.rest().starts_with(b"null") => "null",
            Some(b'-' | b'0'..=b'9') => "a number",
            Some(_) => "something that is not JSON",
        };
        self.fault(format!("expected {expected}, found {found}"))
    }

    /// The end of the document.
    pub fn end(&mut self) -> Result<(), Fault> {
        match self.token() {
            None => Ok(()),
            Some(_) => Err(self.fault("something follows the document")),
        }
    }

    pub fn begin_object(&mut self) -> Result<(), Fault> {
        match self.token() {
            Some(b'{') => {
                self.at += 1;
                Ok(())
            }
            _ => Err(self.expected("an object")),
        }
    }

    /// The next key, its colon passed; `None` at the end of the object, passed. `first` is whether the object has just begun.
    #[inline]
    pub fn next_key(&mut self, first: bool) -> Result<Option<RawString<'a>>, Fault> {
        match self.token() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(b',') if !first => {
                self.at += 1;
                self.token();
            }
            Some(b'"') if first => {}
            _ => return Err(self.expected(if first { "a key or }" } else { ", or }" })),
        }
        if self.byte() != Some(b'"') {
            return Err(self.expected("a key"));
        }
        let key = self.string()?;
        if self.token() != Some(b':') {
            return Err(self.expected(":"));
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Is there a further element in the array, which has just begun if `first`? Its end is passed.
    pub fn next_element(&mut self, first: bool) -> Result<bool, Fault> {
        match self.token() {
            Some(b']') => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                Ok(true)
            }
            Some(_) if first => Ok(true),
            _ => Err(self.expected(", or ]")),
        }
    }

    /// The string that begins here, at its quote.
    #[inline(always)]
    pub fn string(&mut self) -> Result<RawString<'a>, Fault> {
        let from = self.at + 1;
        let mut at = from;
        while let Some(chunk) = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_le_bytes(*chunk);
            let quote = word ^ (ONES * u64::from(b'"'));
            let backslash = word ^ (ONES * u64::from(b'\\'));
            // The lowest marked byte is right; a borrow may mark bytes above it wrongly.
            let special = (quote.wrapping_sub(ONES) & !quote)
                | (backslash.wrapping_sub(ONES) & !backslash)
                | (word.wrapping_sub(ONES * 0x20) & !word);
            let marks = special & HIGHS;
            if marks == 0 {
                at += 8;
                continue;
            }
            at += (marks.trailing_zeros() / 8) as usize;
            if self.bytes[at] == b'"' {
                self.at = at + 1;
                let raw = &self.bytes[from..at];
                return Ok(RawString { raw, escaped: false });
            }
            break;
        }
        // A copy goes out of line, so that this scanner can stay in registers.
        let mut slow = self.clone();
        let string = slow.string_slow(from, at);
        *self = slow;
        string
    }

    /// Escapes, and the last bytes of a document. Before `at` there is nothing special.
    #[inline(never)]
    fn string_slow(&mut self, from: usize, mut at: usize) -> Result<RawString<'a>, Fault> {
        let mut escaped = false;
        loop {
            match self.bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    at += 2;
                }
                Some(0..0x20) => {
                    self.at = at;
                    return Err(self.fault("a control character in a string"));
                }
                Some(_) => at += 1,
                None => {
                    self.at = self.bytes.len();
                    return Err(self.fault("a string without end"));
                }
            }
        }
        self.at = at + 1;
        let raw = &self.bytes[from..at];
        Ok(RawString { raw, escaped })
    }

    /// The number that begins here.
    #[inline(always)]
    pub fn number(&mut self) -> Result<Number<'a>, Fault> {
        let from = self.at;
        let negative = self.byte() == Some(b'-');
        self.at += usize::from(negative);
        let mut mantissa = 0;
        let leading_zero = self.byte() == Some(b'0');
        let whole_digits = self.digits(&mut mantissa);
        if whole_digits == 0 || (leading_zero && whole_digits > 1) {
            return Err(self.fault("not a number"));
        }
        let mut digits = whole_digits;
        let mut exponent = 0;
        if self.byte() == Some(b'.') {
            self.at += 1;
            let fraction_digits = self.digits(&mut mantissa);
            if fraction_digits == 0 {
                return Err(self.fault("not a number"));
            }
            digits += fraction_digits;
            exponent = -(fraction_digits.min(1 << 20) as i32);
        }
        if let Some(b'e' | b'E') = self.byte() {
            let mut slow = self.clone();
            let power = slow.exponent();
            *self = slow;
            exponent = exponent.saturating_add(power?);
        }
        Ok(Number {
            raw: &self.bytes[from..self.at],
            negative,
            mantissa,
            exponent,
            exact: digits <= 19,
        })
    }

    /// At its `e`.
    #[inline(never)]
    fn exponent(&mut self) -> Result<i32, Fault> {
        self.at += 1;
        let negative = self.byte() == Some(b'-');
        if let Some(b'-' | b'+') = self.byte() {
            self.at += 1;
        }
        let from = self.at;
        let mut value = 0i32;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            value = value.saturating_mul(10).saturating_add(i32::from(digit - b'0'));
            self.at += 1;
        }
        if self.at == from {
            return Err(self.fault("not a number"));
        }
        Ok(if negative { -value } else { value })
    }

    /// Passes digits, appends them to `mantissa` (wrapping) and returns how many they were.
    #[inline(always)]
    fn digits(&mut self, mantissa: &mut u64) -> usize {
        const POWERS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
        let from = self.at;
        while let Some(chunk) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let values = u64::from_le_bytes(*chunk) ^ (ONES * u64::from(b'0'));
            // The lowest marked byte is right; a carry may mark bytes above it wrongly.
            let others = (values.wrapping_add(ONES * 0x76) | values) & HIGHS;
            let count = (others.trailing_zeros() / 8) as usize;
            if count == 0 {
                return self.at - from;
            }
            let eight = eight_digits(values << (64 - 8 * count));
            *mantissa = mantissa.wrapping_mul(POWERS[count]).wrapping_add(eight);
            self.at += count;
            if count < 8 {
                return self.at - from;
            }
        }
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.at += 1;
        }
        self.at - from
    }

    /// Passes the literal that begins here.
    #[inline(always)]
    pub fn literal(&mut self, literal: &str) -> Result<(), Fault> {
        if self.pass(literal.as_bytes()) {
            return Ok(());
        }
        Err(Fault::at(format!("expected {literal}"), self.rest()))
    }

    /// Passes one value, which mostly is a short one.
    #[inline(always)]
    pub fn skip_scalar(&mut self) -> Result<(), Fault> {
        if self.byte() == Some(b'"') {
            let string = self.string()?;
            if !string.escaped && string.raw.is_ascii() {
                return Ok(());
            }
            return string.check();
        }
        let mut slow = self.clone();
        let skipped = slow.skip_value();
        *self = slow;
        skipped
    }

    /// Passes one value of any kind.
    pub fn skip_value(&mut self) -> Result<(), Fault> {
        self.skip_nested(0)
    }

    fn skip_nested(&mut self, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(self.fault("nested too deep"));
        }
        match self.token() {
            Some(b'"') => self.string()?.check(),
            Some(b'-' | b'0'..=b'9') => self
                .number()?
                .to_f64()
                .map(drop)
                .ok_or_else(|| self.fault("a number is too large")),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(b'{') => {
                self.at += 1;
                let mut first = true;
                while let Some(key) = self.next_key(first)? {
                    key.check()?;
                    self.skip_nested(depth + 1)?;
                    first = false;
                }
                Ok(())
            }
            Some(b'[') => {
                self.at += 1;
                let mut first = true;
                while self.next_element(first)? {
                    self.skip_nested(depth + 1)?;
                    first = false;
                }
                Ok(())
            }
            _ => Err(self.expected("a value")),
        }
    }
}

/// Eight decimal digits as bytes 0 to 9, the first in the lowest byte.
#[inline(always)]
fn eight_digits(values: u64) -> u64 {
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let high = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let low = (pairs >> 16 & PAIRS).wrapping_mul(1 + (10_000 << 32));
    high.wrapping_add(low) >> 32
}

impl<'a> RawString<'a> {
    /// The string's bytes: in place, or unescaped into `scratch`. Without escapes they are not checked for UTF-8.
    #[inline(always)]
    pub fn bytes(self, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Fault> {
        if !self.escaped {
            return Ok(self.raw);
        }
        self.unescape(scratch)?;
        Ok(scratch)
    }

    /// The string with its UTF-8 checked.
    pub fn text(self, scratch: &'a mut Vec<u8>) -> Result<&'a str, Fault> {
        let raw = self.raw;
        str::from_utf8(self.bytes(scratch)?).map_err(|_| Fault::at("a string is not UTF-8", raw))
    }

    /// Is it a string at all?
    pub fn check(self) -> Result<(), Fault> {
        if self.escaped {
            self.unescape(&mut Vec::new())?;
        }
        match str::from_utf8(self.raw) {
            Ok(_) => Ok(()),
            Err(_) => Err(Fault::at("a string is not UTF-8", self.raw)),
        }
    }

    #[inline(never)]
    fn unescape(self, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.clear();
        let mut rest = self.raw;
        while let Some(position) = memchr::memchr(b'\\', rest) {
            out.extend_from_slice(&rest[..position]);
            rest = &rest[position + 1..];
            let wrong = || Fault::at("an escape that does not exist", rest);
            let (escape, after) = rest.split_first().ok_or_else(wrong)?;
            let plain = match escape {
                b'"' | b'\\' | b'/' => *escape,
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    let (character, after) = unicode_escape(after).ok_or_else(wrong)?;
                    let mut buffer = [0; 4];
                    out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
                    rest = after;
                    continue;
                }
                _ => return Err(wrong()),
            };
            out.push(plain);
            rest = after;
        }
        out.extend_from_slice(rest);
        Ok(())
    }
}

/// The character after `\u`, which may need a second escape; and what follows.
fn unicode_escape(text: &[u8]) -> Option<(char, &[u8])> {
    let (unit, rest) = hex4(text)?;
    if !(0xd800..0xdc00).contains(&unit) {
        return Some((char::from_u32(unit)?, rest));
    }
    let (low, rest) = hex4(rest.strip_prefix(b"\\u")?)?;
    let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    Some((char::from_u32(0x10000 + ((unit - 0xd800) << 10) + low)?, rest))
}

fn hex4(text: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = text.split_first_chunk::<4>()?;
    let value = digits.iter().try_fold(0, |value, digit| {
        char::from(*digit).to_digit(16).map(|digit| value << 4 | digit)
    })?;
    Some((value, rest))
}

impl Number<'_> {
    /// The nearest double; `None` when the number is beyond all of them.
    #[inline(always)]
    pub fn to_f64(self) -> Option<f64> {
        // Both are exact doubles, so that one rounding is left: Clinger's fast path.
        const POWERS: [f64; 23] = [
            1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
            1e19, 1e20, 1e21, 1e22,
        ];
        if self.exact && self.mantissa <= 1 << 53 && self.exponent.unsigned_abs() <= 22 {
            let power = POWERS[self.exponent.unsigned_abs() as usize];
            let mantissa = self.mantissa as f64;
            let value = if self.exponent < 0 {
                mantissa / power
            } else {
                mantissa * power
            };
            return Some(if self.negative { -value } else { value });
        }
        self.to_f64_slow()
    }

    #[inline(never)]
    fn to_f64_slow(self) -> Option<f64> {
        let text = str::from_utf8(self.raw).ok()?;
        text.parse::<f64>().ok().filter(|value| value.is_finite())
    }

    /// The integer; `None` when there is a fraction or more than 64 bits.
    #[inline(always)]
    pub fn to_i64(self) -> Option<i64> {
        if self.exact && self.exponent == 0 {
            return self.signed(self.mantissa);
        }
        self.to_i64_slow()
    }

    /// `1.0` and `1e3` are integers, too.
    #[inline(never)]
    fn to_i64_slow(self) -> Option<i64> {
        if !self.exact {
            // Digits only: as many as may fit.
            return str::from_utf8(self.raw).ok()?.parse().ok();
        }
        let power = 10u64.checked_pow(self.exponent.unsigned_abs());
        match (self.mantissa, power) {
            (0, _) => Some(0),
            (mantissa, Some(power)) if self.exponent > 0 => self.signed(mantissa.checked_mul(power)?),
            (mantissa, Some(power)) => (mantissa % power == 0).then(|| self.signed(mantissa / power))?,
            (_, None) => None,
        }
    }

    /// The integer at or below; `None` beyond 64 bits.
    #[inline(always)]
    pub fn to_i64_floor(self) -> Option<i64> {
        self.to_i64().or_else(|| {
            let floor = self.to_f64()?.floor();
            (-9.2e18..9.2e18).contains(&floor).then_some(floor as i64)
        })
    }

    /// The unsigned integer.
    pub fn to_u64(self) -> Option<u64> {
        if self.exact && self.exponent == 0 && (!self.negative || self.mantissa == 0) {
            return Some(self.mantissa);
        }
        match self.to_i64_slow() {
            Some(value) => u64::try_from(value).ok(),
            None => str::from_utf8(self.raw).ok()?.parse().ok(),
        }
    }

    fn signed(self, magnitude: u64) -> Option<i64> {
        if self.negative {
            0i64.checked_sub_unsigned(magnitude)
        } else {
            i64::try_from(magnitude).ok()
        }
    }
}
