//! Pane records: Arrow IPC streams, each self-contained, each below the size that the topic takes.

use std::io::Cursor;

use arrow::{
    array::RecordBatch,
    ipc::{
        CompressionType,
        reader::StreamReader,
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
    let mut reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(|error| unreadable(error.to_string()))?;
    let rows = reader.next().ok_or_else(|| unreadable("no rows".into()))?;
    rows.map_err(|error| unreadable(error.to_string()))
}

/// The records that carry these rows, none above `bytes_max`: halves, by entity, until they fit. A single row that does
/// not fit is handed to `oversized` with its size.
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
    let half = rows.num_rows() / 2;
    write_panes(&rows.slice(0, half), bytes_max, records, oversized)?;
    write_panes(&rows.slice(half, rows.num_rows() - half), bytes_max, records, oversized)
}

fn encode(rows: &RecordBatch) -> Result<Vec<u8>, Error> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &rows.schema(), options)?;
    writer.write(rows)?;
    writer.finish()?;
    Ok(writer.into_inner()?)
}
