//! Named points at which a test may kill the process, to show that a crash there does no harm.
//!
//! `HOMEOSTAT_CRASH_POINT=after_act` ends the process with SIGKILL when it comes to that point. Unset, a point costs
//! one look at a value read at the first.

use std::sync::LazyLock;

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

    /// Ends the process here if the environment names this point.
    pub fn reached(self) {
        static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("HOMEOSTAT_CRASH_POINT").ok());
        if CHOSEN.as_deref() == Some(self.as_str()) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::process::abort();
        }
    }
}
