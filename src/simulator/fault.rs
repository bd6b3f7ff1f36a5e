//! What can be made to go wrong with a service, so that a fresh process is well again.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A fault of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The process ends without a word.
    Crash,
    /// The process lives and does nothing: no answer, no telemetry, no heartbeat.
    Hang,
    /// The process takes more and more memory.
    Leak,
    /// Requests take long, and many fail.
    Latency,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::Crash, Self::Hang, Self::Leak, Self::Latency];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Leak => "leak",
            Self::Latency => "latency",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|fault| fault.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no fault: crash, hang, leak or latency"))
    }
}
