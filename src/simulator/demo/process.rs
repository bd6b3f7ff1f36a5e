//! Processes of the demonstration: started, named in pid files, and ended, one by one and for certain.
//!
//! A pid file has the shape that the executor's process adapter reads and writes: the pid, the start time as the kernel
//! counts it (with the pid it names a process for as long as the machine is up), and the action that started it.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::{Error, service::now_ms};

/// Who runs, since when, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidFile {
    pub pid: u32,
    pub start_time_ticks: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_id: Option<uuid::Uuid>,
    #[serde(with = "protocol::time")]
    pub started_at: i64,
}

impl PidFile {
    /// Of a process that runs now.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let start_time_ticks = start_time_ticks(pid)
            .ok_or_else(|| Error::Failed(format!("process {pid} ended as soon as it was started")))?;
        Ok(Self {
            pid,
            start_time_ticks,
            action_id: None,
            started_at: now_ms(),
        })
    }

    /// Replaced as a whole: a reader finds the old one or the new one.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let fresh = path.with_extension("pid.new");
        let text = serde_json::to_string(self).expect("a pid file is numbers and strings");
        fs::write(&fresh, text + "\n").map_err(Error::path("cannot write", &fresh))?;
        fs::rename(&fresh, path).map_err(Error::path("cannot write", path))
    }

    /// `None` when there is none, or it cannot be read.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    pub fn alive(&self) -> bool {
        start_time_ticks(self.pid) == Some(self.start_time_ticks)
    }

    /// Ends the process if it is still this one: asked first, then killed.
    pub fn end(&self, timeout: Duration) -> io::Result<()> {
        for signal in [Signal::TERM, Signal::KILL] {
            if !self.signal(signal)? {
                return Ok(());
            }
            let deadline = Instant::now() + timeout;
            while self.alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Whether it still ran. The descriptor is opened before the start time is compared, so that no other process that
    /// was given the pid meanwhile can be hit.
    fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(false);
        };
        let held = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(held) => held,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.alive() {
            return Ok(false);
        }
        match pidfd_send_signal(&held, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`; `None` when there is no such process, or only its zombie.
fn start_time_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_ends_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sleep.pid");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let file = PidFile::of(child.id()).unwrap();
        file.write(&path).unwrap();
        assert_eq!(PidFile::read(&path), Some(file.clone()));
        assert!(file.alive());

        let stranger = PidFile {
            start_time_ticks: file.start_time_ticks + 1,
            ..file.clone()
        };
        stranger.end(Duration::from_secs(1)).unwrap();
        assert!(file.alive(), "another process of that pid is none of ours");

        file.end(Duration::from_secs(5)).unwrap();
        assert!(!file.alive());
        child.wait().unwrap();
    }
}
