//! `homeostat run` as a process of its own, ended with the value.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context;
use tests::rig;

pub struct Program {
    child: Child,
    folder: tempfile::TempDir,
}

impl Program {
    /// Starts it with its default settings, one pipeline, and a fleet of its own on the shared Kafka.
    pub fn run(pipeline: &str, fleet: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let pipelines = folder.path().join("pipelines/bench");
        fs::create_dir_all(&pipelines)?;
        fs::write(pipelines.join("pipeline.sql"), pipeline)?;
        let log = fs::File::create(Self::log(folder.path()))?;
        let child = Command::new(env!("CARGO_BIN_EXE_homeostat"))
            .args(["run", "--pipelines", "pipelines"])
            .env("KAFKA_BOOTSTRAP", &rig::Kafka::shared().bootstrap)
            .env("HOMEOSTAT__TOPICS__PREFIX", fleet)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("homeostat cannot be started")?;
        Ok(Self { child, folder })
    }

    /// Processor time in seconds and peak resident memory in MB of it, which runs.
    pub fn usage(&self) -> anyhow::Result<(f64, f64)> {
        let pid = self.child.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|text| text.parse::<f64>().ok())
                .unwrap_or_default()
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap_or_default();
        let peak_kb: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap_or_default();
        // Linux counts 100 ticks a second on every platform that it shows to programs.
        Ok(((ticks(11) + ticks(12)) / 100.0, peak_kb / 1024.0))
    }

    /// What it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(Self::log(self.folder.path())).unwrap_or_default()
    }

    fn log(folder: &Path) -> std::path::PathBuf {
        folder.join("log")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
