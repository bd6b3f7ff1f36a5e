//! Pane records: Arrow IPC streams, each self-contained, each below the size that the topic takes.

use arrow::{
    array::RecordBatch,
    buffer::Buffer,
    ipc::{
        CompressionType,
        reader::StreamDecoder,
        writer::{IpcWriteOptions, StreamWriter},
    },
};

use crate::error::Error;

/// The rows of a pane record: `pane_start` and `first_offset` (Int64), the key columns without their dictionaries, then
/// the state columns of every aggregate in order. Sorted by pane, within it by the canonical bytes of the key.
pub fn read_panes(bytes: &[u8]) -> Result<RecordBatch, Error> {
    let unreadable = |reason: String| Error::Unreadable {
        what: "pane record",
        reason,
    };
    // The stream decoder never reserves what a length field claims, only what is there.
    let mut buffer = Buffer::from(bytes);
    let mut decoder = StreamDecoder::new();
    let rows = decoder
        .decode(&mut buffer)
        .map_err(|error| unreadable(error.to_string()))?;
    rows.ok_or_else(|| unreadable("no rows".into()))
}

/// The records that carry these rows, none above `bytes_max`: as many equal parts as their size asks for, and parts of those that are
/// too large still. A single row that does not fit is handed to `oversized` with its size.
pub fn write_panes(
    rows: &RecordBatch,
    bytes_max: usize,
    records: &mut Vec<Vec<u8>>,
    oversized: &mut impl FnMut(&RecordBatch, usize),
) -> Result<(), Error> {
    if rows.num_rows() == 0 {
        return Ok(());
    }
    let bytes = encode(rows)?;
    if bytes.len() <= bytes_max {
        records.push(bytes);
        return Ok(());
    }
    if rows.num_rows() == 1 {
        oversized(rows, bytes.len());
        return Ok(());
    }
    // An eighth more than on the average, so that few parts are too large.
    let parts = (bytes.len() + bytes.len() / 8).div_ceil(bytes_max.max(1));
    let parts = parts.clamp(2, rows.num_rows());
    let length = rows.num_rows().div_ceil(parts);
    for from in (0..rows.num_rows()).step_by(length) {
        let part = rows.slice(from, length.min(rows.num_rows() - from));
        write_panes(&part, bytes_max, records, oversized)?;
    }
    Ok(())
}

fn encode(rows: &RecordBatch) -> Result<Vec<u8>, Error> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &rows.schema(), options)?;
    writer.write(rows)?;
    writer.finish()?;
    Ok(writer.into_inner()?)
}
