//! Whether the process lives and whether it is ready: what `/healthz` and `/readyz` answer.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// A part that was heard once and then not for so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Heartbeats of the process's parts, and what stands still.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    ready: bool,
    beats: BTreeMap<String, Instant>,
    /// What stands still until an operator chooses, and why.
    stopped: BTreeMap<String, String>,
}

impl Health {
    /// The process has what it needs to do its work.
    pub fn set_ready(&self, ready: bool) {
        self.lock().ready = ready;
    }

    /// A part of the process is alive.
    pub fn beat(&self, part: &str) {
        let mut state = self.lock();
        match state.beats.get_mut(part) {
            Some(at) => *at = Instant::now(),
            None => {
                state.beats.insert(part.to_owned(), Instant::now());
            }
        }
    }

    /// A part ended as it should.
    pub fn ended(&self, part: &str) {
        self.lock().beats.remove(part);
    }

    pub fn stopped(&self, what: &str, reason: &str) {
        self.lock().stopped.insert(what.to_owned(), reason.to_owned());
    }

    pub fn resumed(&self, what: &str) {
        self.lock().stopped.remove(what);
    }

    /// Why the process should be restarted; empty when it is alive.
    pub fn ailments(&self) -> Vec<String> {
        self.ailments_at(Instant::now())
    }

    /// Why the process does not do all of its work; empty when it is ready.
    pub fn hindrances(&self) -> Vec<String> {
        let mut hindrances = self.ailments();
        let state = self.lock();
        if !state.ready {
            hindrances.push("starting".to_owned());
        }
        hindrances.extend(
            state
                .stopped
                .iter()
                .map(|(what, reason)| format!("{what} stands still: {reason}")),
        );
        hindrances
    }

    fn ailments_at(&self, now: Instant) -> Vec<String> {
        let state = self.lock();
        let silent = state.beats.iter().filter_map(|(part, at)| {
            let silence = now.saturating_duration_since(*at);
            (silence > SILENCE_MAX).then(|| format!("{part} was not heard of for {} s", silence.as_secs()))
        });
        silent.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_falls_silent_is_an_ailment_and_one_that_ended_is_none() {
        let health = Health::default();
        assert_eq!(health.hindrances(), ["starting"]);
        health.set_ready(true);
        health.beat("detect");
        health.beat("decide");
        assert!(health.hindrances().is_empty());
        health.ended("decide");
        let later = Instant::now() + SILENCE_MAX + Duration::from_secs(2);
        assert_eq!(health.ailments_at(later).len(), 1);
        health.beat("detect");
        health.stopped("panes[1]", "offset out of range");
        assert!(health.ailments().is_empty());
        assert_eq!(health.hindrances(), ["panes[1] stands still: offset out of range"]);
        health.resumed("panes[1]");
        assert!(health.hindrances().is_empty());
    }
}
