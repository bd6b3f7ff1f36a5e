//! Snapshots: little-endian fields behind a header of detector tag, version and dimensions.
//!
//! A reader never trusts lengths: whatever the bytes are, it answers with a value or [`Error::State`].

use crate::Error;

pub(crate) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
}

macro_rules! put {
    ($($name:ident $kind:ty),*) => {$(
        pub(crate) fn $name(&mut self, value: $kind) {
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    )*};
}

impl<'a> Writer<'a> {
    pub(crate) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    /// What every snapshot starts with.
    pub(crate) fn header(&mut self, tag: u8, version: u8, features: usize) {
        self.u8(tag);
        self.u8(version);
        self.u16(features as u16);
    }

    put!(u8 u8, u16 u16, u32 u32, u64 u64, i64 i64, f32 f32, f64 f64);

    pub(crate) fn f64s(&mut self, values: &[f64]) {
        for value in values {
            self.f64(*value);
        }
    }

    pub(crate) fn f32s(&mut self, values: &[f32]) {
        for value in values {
            self.f32(*value);
        }
    }

    pub(crate) fn bytes(&mut self, values: &[u8]) {
        self.bytes.extend_from_slice(values);
    }
}

pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

macro_rules! get {
    ($($name:ident $kind:ty),*) => {$(
        pub(crate) fn $name(&mut self) -> Result<$kind, Error> {
            Ok(<$kind>::from_le_bytes(self.array()?))
        }
    )*};
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Checks tag and dimensions; answers with the version, at most `newest`.
    pub(crate) fn header(&mut self, tag: u8, newest: u8, features: usize) -> Result<u8, Error> {
        let found = self.u8()?;
        if found != tag {
            return Err(Error::State(format!(
                "written by another detector (tag {found}, not {tag})"
            )));
        }
        let version = self.u8()?;
        if version == 0 || version > newest {
            return Err(Error::State(format!(
                "version {version} is unknown; this program reads up to {newest}"
            )));
        }
        let written = self.u16()?;
        if usize::from(written) != features {
            return Err(Error::State(format!("written for {written} features, not {features}")));
        }
        Ok(version)
    }

    get!(u8 u8, u16 u16, u32 u32, u64 u64, i64 i64, f32 f32, f64 f64);

    pub(crate) fn f64s(&mut self, values: &mut [f64]) -> Result<(), Error> {
        for value in values {
            *value = self.f64()?;
        }
        Ok(())
    }

    pub(crate) fn f32s(&mut self, values: &mut [f32]) -> Result<(), Error> {
        for value in values {
            *value = self.f32()?;
        }
        Ok(())
    }

    pub(crate) fn bytes(&mut self, values: &mut [u8]) -> Result<(), Error> {
        values.copy_from_slice(self.take(values.len())?);
        Ok(())
    }

    /// A length that must not exceed `max`.
    pub(crate) fn length(&mut self, max: usize) -> Result<usize, Error> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(Error::State(format!("length {length} exceeds {max}")));
        }
        Ok(length)
    }

    /// Every byte must have been read.
    pub(crate) fn finish(self) -> Result<(), Error> {
        match self.bytes.len() {
            0 => Ok(()),
            rest => Err(Error::State(format!("{rest} bytes too many"))),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or_else(|| Error::State("cut short".into()))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
}
