//! Named places at which a test kills the process, to show that nothing is lost or doubled there.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Error;

/// Environment variable that holds a [`CrashPoint`]; read at the edge only.
pub const CRASH_POINT: &str = "HOMEOSTAT_TEST_CRASH_POINT";

/// A place in the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    AfterPoll,
    AfterStep,
    AfterProduce,
    AfterSendOffsets,
    BeforeCommit,
    AfterCommit,
}

impl Point {
    pub const ALL: [Self; 6] = [
        Self::AfterPoll,
        Self::AfterStep,
        Self::AfterProduce,
        Self::AfterSendOffsets,
        Self::BeforeCommit,
        Self::AfterCommit,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::AfterPoll => "after_poll",
            Self::AfterStep => "after_step",
            Self::AfterProduce => "after_produce",
            Self::AfterSendOffsets => "after_send_offsets",
            Self::BeforeCommit => "before_commit",
            Self::AfterCommit => "after_commit",
        }
    }
}

/// How to die there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// Write a line to the file (stage, point, records in the open transaction), then SIGKILL this process.
    Kill { mark_file: PathBuf },
    /// Write the same line, then SIGSTOP this process: it goes on from here when somebody continues it, as a zombie.
    Stop { mark_file: PathBuf },
    /// Return [`Error::Crashed`] at once: a simulation drops the loop.
    Return,
}

/// Crash when `stage` reaches `point` for the `nth` time with output in its open transaction (`after_commit`: right after one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    pub stage: String,
    pub point: Point,
    /// 1 is the first.
    pub nth: u32,
    pub death: Death,
}

impl CrashPoint {
    /// Reads `stage:point:nth:mark_file`, or `stage:point:nth:stop:mark_file` to be stopped instead of killed.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = || {
            Error::Config(format!(
                "{CRASH_POINT}={text:?} is not stage:point:nth:mark_file with a point of {}",
                Point::ALL.map(Point::name).join(", ")
            ))
        };
        let mut parts = text.splitn(4, ':');
        let (Some(stage), Some(point), Some(nth), Some(mark_file)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        let death = match mark_file.strip_prefix("stop:") {
            Some(mark_file) => Death::Stop {
                mark_file: mark_file.into(),
            },
            None => Death::Kill {
                mark_file: mark_file.into(),
            },
        };
        Ok(Self {
            stage: stage.to_owned(),
            point: Point::ALL.into_iter().find(|p| p.name() == point).ok_or_else(invalid)?,
            nth: nth.parse().ok().filter(|n| *n > 0).ok_or_else(invalid)?,
            death,
        })
    }

    /// Whether it is still to come, at a place of this stage that lies before the commit.
    pub(crate) fn is_between_polls(&self, stage: &str) -> bool {
        self.stage == stage && self.nth < u32::MAX && matches!(self.point, Point::AfterPoll | Point::AfterStep)
    }

    /// Dies here if this is the place and the time. `records`: output records in the open transaction.
    pub(crate) fn reach(&mut self, stage: &str, point: Point, records: usize) -> Result<(), Error> {
        if records == 0 || self.point != point || self.stage != stage {
            return Ok(());
        }
        self.nth -= 1;
        if self.nth > 0 {
            return Ok(());
        }
        // A simulation may go on with the same loop's configuration: once is once.
        self.nth = u32::MAX;
        match &self.death {
            Death::Return => Err(Error::Crashed(point.name())),
            Death::Kill { mark_file } => {
                mark(mark_file, stage, point, records)?;
                signal_self("-KILL")?;
                loop {
                    std::thread::park();
                }
            }
            Death::Stop { mark_file } => {
                mark(mark_file, stage, point, records)?;
                signal_self("-STOP")
            }
        }
    }
}

fn mark(file: &Path, stage: &str, point: Point, records: usize) -> Result<(), Error> {
    let line = format!("{stage} {} {records}\n", point.name());
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| Error::Config(format!("crash point cannot write {}: {error}", file.display())))
}

/// By the system's own `kill`: nothing in this process gets to clean up.
fn signal_self(signal: &str) -> Result<(), Error> {
    let pid = std::process::id().to_string();
    Command::new("kill")
        .args([signal, &pid])
        .status()
        .map(|_| ())
        .map_err(|error| Error::Config(format!("crash point cannot run kill: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_refuses() {
        let point = CrashPoint::parse("detect:after_commit:3:/tmp/a:b").unwrap();
        assert_eq!((point.point, point.nth), (Point::AfterCommit, 3));
        assert_eq!(
            point.death,
            Death::Kill {
                mark_file: "/tmp/a:b".into()
            }
        );
        let stopped = CrashPoint::parse("detect:after_produce:1:stop:/tmp/m").unwrap();
        assert_eq!(
            stopped.death,
            Death::Stop {
                mark_file: "/tmp/m".into()
            }
        );
        for bad in [
            "",
            "detect:after_commit:0:f",
            "detect:nowhere:1:f",
            "detect:after_poll:x:f",
            "detect:after_poll:1",
        ] {
            assert!(CrashPoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_only_places_with_output() {
        let mut point = CrashPoint {
            stage: "detect".into(),
            point: Point::AfterStep,
            nth: 2,
            death: Death::Return,
        };
        assert!(point.reach("detect", Point::AfterStep, 0).is_ok());
        assert!(point.reach("decide", Point::AfterStep, 1).is_ok());
        assert!(point.reach("detect", Point::AfterStep, 1).is_ok());
        assert!(point.reach("detect", Point::AfterPoll, 1).is_ok());
        assert!(point.reach("detect", Point::AfterStep, 1).is_err());
        assert!(point.reach("detect", Point::AfterStep, 1).is_ok());
    }
}
