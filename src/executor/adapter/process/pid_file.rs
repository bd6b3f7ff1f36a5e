//! The pid file: JSON, replaced as a whole, so that a reader finds the old one or the new one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::system;

/// Who runs, since when, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidFile {
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks from boot to the start of the process. With the pid it names the
    /// process for as long as the machine is up.
    pub start_time_ticks: u64,
    /// The action that started it; absent for one started by hand.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub action_id: Option<Uuid>,
    #[serde(with = "protocol::time")]
    pub started_at: i64,
    /// Why the start failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl PidFile {
    /// Of a process that runs now.
    pub fn of(pid: u32, action_id: Option<Uuid>) -> io::Result<Self> {
        let start_time_ticks = system::start_time_ticks(pid)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("process {pid} does not run")))?;
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            pid,
            start_time_ticks,
            action_id,
            started_at: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            error: None,
        })
    }
}

/// `None` when there is no file.
pub fn read(path: &Path) -> io::Result<Option<PidFile>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let reason = format!("not a pid file; remove it if no service runs: {error}");
            io::Error::new(io::ErrorKind::InvalidData, reason)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Durable when it returns.
pub fn write(path: &Path, file: &PidFile) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut writer = File::create(&temporary)?;
    serde_json::to_writer(&mut writer, file)?;
    writer.write_all(b"\n")?;
    writer.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
