//! Named points at which a test may let an executor die, to show that a crash there does no harm.
//!
//! `HOMEOSTAT_CRASH_POINT=after_act` ends the process with SIGKILL when it comes to that point. In a simulation, where many
//! executors live in one process, [`Error::Crashed`] ends one of them: from then on it does nothing more.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;

/// Before and after which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    AfterClaim,
    AfterIntent,
    AfterAct,
    BeforeOutcome,
    BeforeCommit,
}

impl CrashPoint {
    pub const ALL: [Self; 5] = [
        Self::AfterClaim,
        Self::AfterIntent,
        Self::AfterAct,
        Self::BeforeOutcome,
        Self::BeforeCommit,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::AfterClaim => "after_claim",
            Self::AfterIntent => "after_intent",
            Self::AfterAct => "after_act",
            Self::BeforeOutcome => "before_outcome",
            Self::BeforeCommit => "before_commit",
        }
    }
}

/// Where and how one executor is to die; by default nowhere.
#[derive(Debug, Default)]
pub struct Crash {
    at: Option<(CrashPoint, Death)>,
    died: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
enum Death {
    Kill,
    Return,
}

impl Crash {
    /// As the environment says, by SIGKILL.
    pub fn from_environment() -> Self {
        let named = std::env::var("HOMEOSTAT_CRASH_POINT").ok();
        let point = CrashPoint::ALL
            .into_iter()
            .find(|point| named.as_deref() == Some(point.as_str()));
        Self {
            at: point.map(|point| (point, Death::Kill)),
            died: AtomicBool::new(false),
        }
    }

    /// At this point, with [`Error::Crashed`].
    pub fn simulated(point: CrashPoint) -> Self {
        Self {
            at: Some((point, Death::Return)),
            died: AtomicBool::new(false),
        }
    }

    /// Dies here if this is the place, or is dead already.
    pub(crate) fn reach(&self, point: CrashPoint) -> Result<(), Error> {
        match self.at {
            Some((at, Death::Kill)) if at == point => {
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                std::process::abort();
            }
            Some((at, Death::Return)) if at == point => self.died.store(true, Ordering::SeqCst),
            _ => {}
        }
        self.alive()
    }

    /// The dead do nothing: what other threads had begun ends at its next step.
    pub(crate) fn alive(&self) -> Result<(), Error> {
        match self.died.load(Ordering::SeqCst) {
            true => Err(Error::Crashed),
            false => Ok(()),
        }
    }
}
