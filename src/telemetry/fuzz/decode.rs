//! Any bytes as a record of any format: `cargo +nightly fuzz run decode` in the crate's folder. The files under `testdata`
//! are a corpus to begin with; the first byte of an input chooses the format.

#![no_main]

mod any_bytes;

libfuzzer_sys::fuzz_target!(|input: &[u8]| any_bytes::decode(input));
