//! Kafka's wire format, as far as fetching needs it: big-endian integers, strings, arrays, varints.
//!
//! After the protocol guide (<https://kafka.apache.org/protocol>), versions without tagged fields only.

/// Bytes that are not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is cut short or not as the protocol has it")]
pub(super) struct Malformed(pub &'static str);

/// Takes values from the front of a message.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Length of the whole, so that positions can be told.
    length: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            length: bytes.len(),
        }
    }

    /// Bytes taken so far.
    pub fn position(&self) -> usize {
        self.length - self.rest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed(what))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn i8(&mut self, what: &'static str) -> Result<i8, Malformed> {
        self.array(what).map(i8::from_be_bytes)
    }

    pub fn i16(&mut self, what: &'static str) -> Result<i16, Malformed> {
        self.array(what).map(i16::from_be_bytes)
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, Malformed> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.array(what).map(i64::from_be_bytes)
    }

    /// A count or length that may be null (-1), as `None`.
    pub fn length(&mut self, what: &'static str) -> Result<Option<usize>, Malformed> {
        Ok(usize::try_from(self.i32(what)?).ok())
    }

    /// A string; null is `None`.
    pub fn string(&mut self, what: &'static str) -> Result<Option<&'a str>, Malformed> {
        let Ok(length) = usize::try_from(self.i16(what)?) else {
            return Ok(None);
        };
        std::str::from_utf8(self.take(length, what)?)
            .map(Some)
            .map_err(|_| Malformed(what))
    }

    /// Bytes behind a length of four bytes; null is `None`.
    pub fn bytes(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, Malformed> {
        match self.length(what)? {
            None => Ok(None),
            Some(length) => self.take(length, what).map(Some),
        }
    }

    /// A zigzag varint of up to 64 bits.
    #[inline]
    pub fn varint(&mut self, what: &'static str) -> Result<i64, Malformed> {
        // Deltas, lengths and the like: one byte, mostly.
        if let Some((&first, rest)) = self.rest.split_first()
            && first < 0x80
        {
            self.rest = rest;
            return Ok(zigzag(u64::from(first)));
        }
        self.long_varint(what)
    }

    fn long_varint(&mut self, what: &'static str) -> Result<i64, Malformed> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(zigzag(value));
            }
        }
        Err(Malformed(what))
    }

    /// Bytes behind a varint length; null is `None`.
    #[inline]
    pub fn varint_bytes(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, Malformed> {
        match usize::try_from(self.varint(what)?) {
            Err(_) => Ok(None),
            Ok(length) => self.take(length, what).map(Some),
        }
    }
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A request's body, written front to back.
#[derive(Default)]
pub(super) struct Body(pub Vec<u8>);

impl Body {
    pub fn i8(&mut self, value: i8) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn i16(&mut self, value: i16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// The length of an array.
    pub fn count(&mut self, count: usize) -> &mut Self {
        self.i32(count as i32)
    }

    pub fn string(&mut self, text: &str) -> &mut Self {
        self.i16(text.len() as i16).raw(text.as_bytes())
    }

    /// Bytes behind a length of four bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
}
