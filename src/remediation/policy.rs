//! What an operator wants done: the decided part of `CREATE POLICY`, without expressions.

use std::time::Duration;

use protocol::message::Mode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Limit;

/// Windows after its last one that an episode is given to speak again: the record of a window is written when the window
/// closes, a little after the watermark passed its end.
pub(crate) const SLACK_STEPS: i64 = 2;

/// One policy. The binary makes it of the pipeline's own; detect has evaluated WHEN and CLEAR WHEN for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub pipeline: String,
    pub name: String,
    pub detector: String,
    /// FOR k OF n WINDOWS.
    pub for_k: u32,
    pub for_n: u32,
    /// From one window of the detector to the next, milliseconds of event time.
    pub window_step_ms: i64,
    /// How long after a window's end, in event time, its record may still come: the view's lateness.
    pub lateness_ms: i64,
    /// The detector speaks only when an alarm begins and when it ends: silence between is no end of the alarm.
    pub latched: bool,
    /// The detector foretells: nothing is wrong yet, so only what does little harm and can be taken back may be done.
    pub predictive: bool,
    /// CLEAR WHEN … FOR so many WINDOWS; without it an episode ends at the detector's own clearing record.
    pub clear_windows: Option<u32>,
    pub cooldown: Duration,
    /// LIMIT n ACTIONS PER interval, all of them.
    pub limits: Vec<Limit>,
    pub action: Choice,
    /// KEY column that names the service to act on.
    pub target_key_column: String,
    pub params: Map<String, Value>,
    pub expires_after: Duration,
    pub mode: Mode,
    /// Full name of the topic of its commands.
    pub into_topic: String,
    pub exec_timeout: Duration,
    /// `None`: the fleet's.
    pub verify_after: Option<Duration>,
    pub verify_for: Option<Duration>,
}

/// What a policy does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// DO ACTION 'restart'
    Fixed(String),
    /// DO LADDER (restart, …): each step once, in order, until one heals.
    Ladder(Vec<String>),
    /// DO CHOOSE: the learned model picks among these; without any, among the fleet's.
    Choose(Vec<String>),
}

impl Choice {
    /// Every kind of action that it may come to; `fleets` are those of a learned choice that names none.
    pub(crate) fn kinds<'a>(&'a self, fleets: &'a [String]) -> &'a [String] {
        match self {
            Self::Fixed(kind) => std::slice::from_ref(kind),
            Self::Choose(kinds) if kinds.is_empty() => fleets,
            Self::Ladder(kinds) | Self::Choose(kinds) => kinds,
        }
    }
}

impl Policy {
    /// A policy with everything optional at its default: restart-like, one window of one, in approve mode.
    pub fn new(pipeline: &str, name: &str, detector: &str, action: Choice) -> Self {
        Self {
            pipeline: pipeline.into(),
            name: name.into(),
            detector: detector.into(),
            for_k: 1,
            for_n: 1,
            window_step_ms: 10_000,
            lateness_ms: 0,
            latched: false,
            predictive: false,
            clear_windows: None,
            cooldown: Duration::from_secs(600),
            limits: Vec::new(),
            action,
            target_key_column: "service_name".into(),
            params: Map::new(),
            expires_after: Duration::from_secs(120),
            mode: Mode::Approve,
            into_topic: "homeostat.actions".into(),
            exec_timeout: Duration::from_secs(120),
            verify_after: None,
            verify_for: None,
        }
    }

    /// `pipeline.name`, unique in a fleet.
    pub fn id(&self) -> String {
        format!("{}.{}", self.pipeline, self.name)
    }

    pub(crate) fn step_ms(&self) -> i64 {
        self.window_step_ms.max(1)
    }

    /// Event time over which k windows of n are counted.
    pub(crate) fn span_ms(&self) -> i64 {
        self.step_ms().saturating_mul(i64::from(self.for_n.max(1)))
    }

    /// Event time without any record after which an episode is over: its windows no longer count, a clearing would have
    /// been written, and two more steps have passed for the records of windows that close late.
    pub(crate) fn rest_ms(&self) -> i64 {
        let windows = self.for_n.max(self.clear_windows.unwrap_or(0)).max(1);
        let span_ms = self.step_ms().saturating_mul(i64::from(windows) + SLACK_STEPS);
        span_ms.saturating_add(self.lateness_ms.max(0))
    }
}
