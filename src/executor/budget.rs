//! The executor's own budget and breakers: its defence when whoever decides is wrong.
//!
//! A budget bounds how many actions start in any window, over all and by action and target. A breaker opens for one kind
//! of action on one adapter when it has failed, or ended unknown, too often in a row; after a while one action is let
//! through, and how that ends counts. Pure: what has started, how it ended and the clock are arguments; the
//! [`crate::ledger`] keeps them, so that both survive a restart.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{admission::Refusal, allow};

/// The longest window. Starts are remembered for longer.
pub const WINDOW_MS_MAX: i64 = 86_400_000;

/// At most so many starts in any window, of the actions that a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The action's type; `*` stands for any run of characters.
    #[serde(default = "any")]
    pub action: String,
    /// Service names; `*` stands for any run of characters.
    #[serde(default = "any")]
    pub target: String,
    pub actions_max: u32,
    pub window_ms: i64,
}

fn any() -> String {
    "*".into()
}

impl Rule {
    fn is_for(&self, action: &str, service: &str) -> bool {
        allow::matches(&self.action, action) && allow::matches(&self.target, service)
    }
}

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakerConfig {
    /// So many in a row open it.
    pub failures_max: u32,
    /// Since the last of them; then one action is let through.
    pub open_ms: i64,
}

/// What the executor allows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Every rule that is for an action must have room.
    pub budget: Vec<Rule>,
    pub breaker: BreakerConfig,
}

impl Bounds {
    /// As far back as starts are asked for.
    pub fn window_ms(&self) -> i64 {
        self.budget.iter().map(|rule| rule.window_ms).max().unwrap_or(0)
    }

    /// Whether one more may start at `now_ms`, given those that did.
    pub fn room(&self, starts: &[Start], action: &str, service: &str, now_ms: i64) -> Result<(), Refusal> {
        for rule in self.budget.iter().filter(|rule| rule.is_for(action, service)) {
            // Both ways: the clock may have been set back, and no window may hold more whatever it says.
            let counts = |start: &&Start| {
                start.at_ms.abs_diff(now_ms) < rule.window_ms.unsigned_abs()
                    && rule.is_for(&start.action, &start.service)
            };
            let started = starts.iter().filter(counts).count();
            if started >= rule.actions_max as usize {
                let Rule {
                    action,
                    target,
                    actions_max,
                    window_ms,
                } = rule;
                return Err(Refusal::rejected(
                    429,
                    format!(
                        "budget: {started} actions of {action:?} on {target:?} have started within {window_ms} ms, and this \
                         executor allows {actions_max}"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// An action that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub at_ms: i64,
    pub action: String,
    pub service: String,
}

/// How the actions of one kind on one adapter have ended of late.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// In a row.
    failures: u32,
    failed_at_ms: i64,
    /// The one that was let through, and when.
    probe: Option<(Uuid, i64)>,
}

impl Breaker {
    /// Whether the action may start; the one that is let through is remembered.
    pub fn admit(&mut self, config: BreakerConfig, lane: &str, action: Uuid, now_ms: i64) -> Result<(), Refusal> {
        if self.failures < config.failures_max {
            return Ok(());
        }
        let lately = |at_ms: i64| at_ms.abs_diff(now_ms) < config.open_ms.unsigned_abs();
        let failures = self.failures;
        if lately(self.failed_at_ms) {
            return Err(Refusal::rejected(
                429,
                format!(
                    "breaker: {lane} has failed {failures} times in a row; one action is let through {} ms after the last",
                    config.open_ms
                ),
            ));
        }
        // One whose end is never heard of does not hold the breaker open for ever.
        if let Some((probe, _)) = self.probe.filter(|(probe, at_ms)| *probe != action && lately(*at_ms)) {
            return Err(Refusal::rejected(
                429,
                format!("breaker: {lane} has failed {failures} times in a row, and action {probe} is trying it now"),
            ));
        }
        self.probe = Some((action, now_ms));
        Ok(())
    }

    /// An action ended.
    pub fn ended(&mut self, action: Uuid, how: Ending, now_ms: i64) {
        match how {
            Ending::Worked => *self = Self::default(),
            Ending::Failed => {
                self.failures = self.failures.saturating_add(1);
                self.failed_at_ms = now_ms;
            }
            Ending::SaysNothing => {}
        }
        self.probe = self.probe.filter(|(probe, _)| *probe != action);
    }
}

/// What the end of an action says of its adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Worked,
    /// Failed, or unknown.
    Failed,
    /// It was withdrawn, or the world had moved on before it.
    SaysNothing,
}

#[cfg(test)]
mod tests;
