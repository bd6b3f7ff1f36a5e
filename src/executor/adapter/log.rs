//! Writes commands to a file, or only to the program's own log: to see what would be done, or for other programs to read.
//!
//! A line of the file is the command's data with the action's id first; the line is the marker. A line that a crash cut
//! short has no newline and does not count.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::Mutex,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use crate::{
    adapter::{Adapter, Before, Effect, Failure, Reconciled},
    admission::Refusal,
    command::Command,
};

/// Where commands are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// JSON lines are appended here; without it, commands go to the program's log only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

pub struct LogAdapter {
    file: Option<PathBuf>,
    /// One writer at a time, so that lines do not mix.
    writing: Mutex<()>,
}

#[derive(Serialize)]
struct Line<'a> {
    action_id: Uuid,
    command: &'a RawValue,
}

impl LogAdapter {
    pub fn new(config: &Config) -> Self {
        Self {
            file: config.file.clone(),
            writing: Mutex::new(()),
        }
    }
}

impl Adapter for LogAdapter {
    fn knows(&self, _command: &Command) -> Result<(), Refusal> {
        Ok(())
    }

    fn reconcile(&self, command: &Command, _before: Option<&Before>) -> Reconciled {
        let Some(path) = &self.file else {
            return Reconciled::NotDone;
        };
        match contains(path, command.id()) {
            Ok(true) => Reconciled::Done(effect(self.file.as_ref())),
            Ok(false) => Reconciled::NotDone,
            Err(error) => Reconciled::Unknown(format!("{} cannot be read: {error}", path.display())),
        }
    }

    fn act(&self, command: &Command, _before: &Before) -> Result<Effect, Failure> {
        tracing::info!(
            action_id = %command.id(),
            action = command.kind(),
            target = %command.action.target.key,
            command = %String::from_utf8_lossy(&command.data),
            "command"
        );
        if let Some(path) = &self.file {
            let _one = self.writing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            append(path, command)
                .map_err(|error| Failure::failed(format!("{} cannot be written: {error}", path.display())))?;
        }
        Ok(effect(self.file.as_ref()))
    }
}

fn effect(file: Option<&PathBuf>) -> Effect {
    let written = file.map_or(Value::from("log"), |path| path.display().to_string().into());
    Effect::from_iter([("written_to".to_owned(), json!(written))])
}

fn append(path: &PathBuf, command: &Command) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let mut text = Vec::new();
    if !ends_line(&mut file)? {
        text.push(b'\n');
    }
    serde_json::to_writer(
        &mut text,
        &Line {
            action_id: command.id(),
            command: serde_json::from_slice(&command.data)?,
        },
    )?;
    // The data may have been written over several lines, and raw JSON keeps them. Inside strings JSON has none.
    for byte in &mut text[1..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_data()
}

fn ends_line(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn contains(path: &PathBuf, action: Uuid) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let marker = format!("{{\"action_id\":\"{action}\"");
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if line.starts_with(marker.as_bytes()) && line.ends_with(b"\n") {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests;
