//! One fleet: its records in, what to say and to remember out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    CloudEvent, id,
    message::{Control, TimeProgress},
};
use uuid::Uuid;

use crate::{
    Effect, FleetConfig, Input, Message, Policy,
    config::glob,
    observe::Counters,
    state::{Case, Episode, EpisodeKey, InForce, Index, Peak, State, StateKey, TargetState},
};

/// How long the greatest population of a group is remembered.
const PEAK_MS: i64 = 3_600_000;

/// All that is known of one fleet.
#[derive(Debug)]
pub struct Fleet {
    pub(crate) config: FleetConfig,
    pub(crate) policies: BTreeMap<(String, String), Arc<Policy>>,
    /// Policies by pipeline and detector.
    pub(crate) watching: BTreeMap<(String, String), Vec<Arc<Policy>>>,
    pub(crate) state: State,
    pub(crate) index: Index,
    pub(crate) dirty: BTreeSet<StateKey>,
    pub(crate) counters: Counters,
}

impl Fleet {
    /// A fleet that remembers nothing yet.
    pub fn new(config: FleetConfig, policies: impl IntoIterator<Item = Policy>) -> Self {
        let mut fleet = Self {
            config,
            policies: BTreeMap::new(),
            watching: BTreeMap::new(),
            state: State::default(),
            index: Index::default(),
            dirty: BTreeSet::new(),
            counters: Counters::default(),
        };
        fleet.set_policies(policies);
        fleet
    }

    /// Replaces the policies, at a record boundary. Incidents of a policy that is gone close when they next come up.
    pub fn set_policies(&mut self, policies: impl IntoIterator<Item = Policy>) {
        self.policies.clear();
        self.watching.clear();
        for policy in policies {
            let policy = Arc::new(policy);
            self.policies
                .insert((policy.pipeline.clone(), policy.name.clone()), policy.clone());
        }
        for policy in self.policies.values() {
            self.watching
                .entry((policy.pipeline.clone(), policy.detector.clone()))
                .or_default()
                .push(policy.clone());
        }
    }

    /// One record: moves time, fires what is due, then hears what the record says.
    pub fn apply(&mut self, input: Input<'_>, out: &mut Vec<Effect>) {
        let first = out.len();
        self.advance(input.broker_ms, out);
        match input.message {
            Message::Anomaly { event, data } => self.on_anomaly(event, data, out),
            Message::Progress(data) => self.on_progress(data, out),
            Message::Outcome { event, data } => self.on_outcome(event, data, out),
            Message::Approval { event, data, standing } => self.on_approval(event, data, standing, out),
            Message::Control { scope, data } => self.on_control(scope, data, out),
            Message::Other => {}
        }
        self.note_storms(out);
        for effect in &out[first..] {
            self.counters.count(effect);
        }
    }

    /// Decide's time: the greatest broker timestamp, or clock in a progress record, that was read. Never goes back.
    pub fn now_ms(&self) -> i64 {
        self.state.clock.now_ms
    }

    /// Next offset to read from a side input; `None` before the first was set.
    pub fn position(&self, topic: &str) -> Option<i64> {
        self.state.positions.get(topic).copied()
    }

    /// Side inputs with the next offset to read.
    pub fn positions(&self) -> impl Iterator<Item = (&str, i64)> {
        self.state
            .positions
            .iter()
            .map(|(topic, offset)| (topic.as_str(), *offset))
    }

    /// Where a side input stands: durable with the rest of the state.
    pub fn set_position(&mut self, topic: &str, next_offset: i64) {
        self.state.positions.insert(topic.to_owned(), next_offset);
        self.dirty.insert(StateKey::Position(topic.to_owned()));
    }

    /// Control records in force, by scope.
    pub fn controls(&self) -> impl Iterator<Item = (&str, &Control)> {
        self.state
            .controls
            .iter()
            .map(|(scope, control)| (scope.as_str(), control))
    }

    fn advance(&mut self, broker_ms: i64, out: &mut Vec<Effect>) {
        if broker_ms > self.state.clock.now_ms {
            self.state.clock.now_ms = broker_ms;
            self.dirty.insert(StateKey::Clock);
            self.end_modes(broker_ms, out);
        }
        let clock = &mut self.state.clock;
        if clock.first_activity_ms.is_none() && clock.now_ms > 0 {
            clock.first_activity_ms = Some(clock.now_ms);
        }
        self.fire_due(out);
    }

    /// Looks again at every episode whose time has come, each once, in the order of their times.
    fn fire_due(&mut self, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms();
        let due = due(&self.index.wakes, now_ms);
        for key in due {
            self.on_time(&key, out);
        }
        self.forget(now_ms);
        let Some(watermark_ms) = self.watermark_ms() else {
            return;
        };
        let due = self::due(&self.index.event_wakes, watermark_ms);
        for key in due {
            self.on_watermark(&key, watermark_ms, out);
        }
    }

    /// A mode whose time is over is taken back, as a person would.
    fn end_modes(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        let over = self
            .state
            .controls
            .iter()
            .filter(|(_, control)| is_over(control, now_ms));
        let over: Vec<String> = over.map(|(scope, _)| scope.clone()).collect();
        for scope in over {
            self.on_control(&scope, None, out);
        }
    }

    /// Forgets services of which nothing matters any more, a few at a time.
    fn forget(&mut self, now_ms: i64) {
        const AT_ONCE: usize = 64;
        let due = self.index.forgets.iter().take_while(|(at_ms, _)| *at_ms <= now_ms);
        let due: Vec<String> = due.take(AT_ONCE).map(|(_, key)| key.clone()).collect();
        for key in due {
            self.replace_target(key.clone(), None);
            self.dirty.insert(StateKey::Target(key));
        }
    }

    fn on_progress(&mut self, data: &TimeProgress, out: &mut Vec<Effect>) {
        let partition = self.state.progress.entry(data.partition).or_default();
        partition.watermark_ms = partition.watermark_ms.max(data.watermark_ms);
        partition.population.clone_from(&data.population);
        self.dirty.insert(StateKey::Progress(data.partition));
        for group in data.population.keys() {
            self.note_population(group);
        }
        self.advance(data.clock, out);
    }

    fn note_population(&mut self, group: &str) {
        let now_ms = self.now_ms();
        let count = self.population(group).unwrap_or(0);
        let peak = self.state.peaks.get(group).copied();
        let keep = peak.is_some_and(|peak| {
            let age_ms = now_ms - peak.at_ms;
            // Refreshing only now and then keeps a steady population from writing state every second.
            peak.count > count && age_ms < PEAK_MS || peak.count == count && age_ms < PEAK_MS / 2
        });
        if !keep {
            let peak = Peak { count, at_ms: now_ms };
            self.state.peaks.insert(group.to_owned(), peak);
            self.dirty.insert(StateKey::Peak(group.to_owned()));
        }
    }

    /// Entities that a detector watches, over all partitions; `None` when nobody has said.
    pub(crate) fn population(&self, group: &str) -> Option<u64> {
        let counts = self.state.progress.values().filter_map(|p| p.population.get(group));
        counts.copied().reduce(u64::saturating_add)
    }

    /// Event time that every partition has passed; `None` before the first report.
    pub(crate) fn watermark_ms(&self) -> Option<i64> {
        self.state.progress.values().filter_map(|p| p.watermark_ms).min()
    }

    fn on_control(&mut self, scope: &str, data: Option<&Control>, out: &mut Vec<Effect>) {
        // Said once about one command: there is nothing to remember.
        if let Some(Control::Cancel { action, by, reason, .. }) = data {
            return self.on_cancel(*action, by, reason, out);
        }
        let data = data.filter(|control| !is_over(control, self.now_ms()));
        let changed = self.state.controls.get(scope) != data;
        if !changed {
            return;
        }
        // A model that cannot be read never replaces one that can.
        let model = match data {
            Some(Control::Model { model, .. }) => match InForce::read(model) {
                Ok(model) => Some(model),
                Err(reason) => {
                    out.push(Effect::Unusable(format!("{scope}: {reason}")));
                    return;
                }
            },
            _ => None,
        };
        if let Some(Control::Thresholds { set, .. }) = data
            && let Err(reason) = self.config.with(set)
        {
            out.push(Effect::Unusable(format!("{scope}: {reason}")));
            return;
        }
        self.index.models.remove(scope);
        self.index.models.extend(model.map(|model| (scope.to_owned(), model)));
        match data {
            Some(control) => self.state.controls.insert(scope.to_owned(), control.clone()),
            None => self.state.controls.remove(scope),
        };
        self.dirty.insert(StateKey::Control(scope.to_owned()));
        if let Some(Control::Reset { service, by, .. }) = data {
            self.reset(service, by, out);
        }
        let open: Vec<EpisodeKey> = self.index.cases.iter().map(|(_, key)| key.clone()).collect();
        for key in open {
            self.consider(&key, out);
        }
    }

    /// Open incidents at services that a pattern names.
    pub(crate) fn cases_at(&self, service: &str) -> Vec<EpisodeKey> {
        let matches = |key: &&EpisodeKey| {
            let episode = self.state.episodes.get(*key);
            episode.is_some_and(|episode| glob(service, &episode.target.name))
        };
        self.index
            .cases
            .iter()
            .map(|(_, key)| key)
            .filter(matches)
            .cloned()
            .collect()
    }

    /// Changes an episode and everything that follows from it. Nothing happens when there is none.
    pub(crate) fn edit<R>(&mut self, key: &EpisodeKey, change: impl FnOnce(&mut Episode) -> R) -> Option<R> {
        let episode = self.state.episodes.get_mut(key)?;
        self.index.remove(key, episode);
        let result = change(episode);
        self.index.add(key, episode);
        self.dirty.insert(StateKey::Episode(key.clone()));
        Some(result)
    }

    /// Changes the open incident of an episode. Nothing happens when there is none.
    pub(crate) fn edit_case<R>(&mut self, key: &EpisodeKey, change: impl FnOnce(&mut Case) -> R) -> Option<R> {
        self.edit(key, |episode| episode.case.as_mut().map(change)).flatten()
    }

    pub(crate) fn insert_episode(&mut self, key: EpisodeKey, episode: Episode) {
        self.index.add(&key, &episode);
        self.dirty.insert(StateKey::Episode(key.clone()));
        self.state.episodes.insert(key, episode);
    }

    pub(crate) fn remove_episode(&mut self, key: &EpisodeKey) {
        if let Some(episode) = self.state.episodes.remove(key) {
            self.index.remove(key, &episode);
            self.dirty.insert(StateKey::Episode(key.clone()));
        }
    }

    /// Changes what is remembered of a service; forgets it when nothing is left to remember.
    pub(crate) fn edit_target(&mut self, key: &str, change: impl FnOnce(&mut TargetState)) {
        let mut target = self.state.targets.get(key).cloned().unwrap_or_default();
        change(&mut target);
        self.replace_target(key.to_owned(), Some(target));
        self.dirty.insert(StateKey::Target(key.to_owned()));
    }

    /// An event about a target, with what every event of an incident carries.
    pub(crate) fn event(
        &self,
        kind: &str,
        id: Uuid,
        key: &EpisodeKey,
        episode: &Episode,
        incident: Uuid,
    ) -> CloudEvent {
        let tenant = &self.config.tenant;
        let source = format!("/homeostat/{tenant}/{}", key.pipeline);
        let subject = episode.target.key();
        let cause = episode.case.as_ref().map_or(episode.latest, |case| case.opened_by);
        let mut event = CloudEvent::new(id, tenant, &source, kind, &subject, cause.end_ms);
        event.recorded_time_ms = Some(self.now_ms());
        event.correlation_id = Some(incident);
        event.causation_id = Some(cause.event);
        event.traceparent = Some(id::traceparent(incident, id));
        event
    }

    pub(crate) fn policy(&self, key: &EpisodeKey) -> Option<Arc<Policy>> {
        self.policies.get(&(key.pipeline.clone(), key.policy.clone())).cloned()
    }
}

/// Whether a control record was said for a time that is over.
fn is_over(control: &Control, now_ms: i64) -> bool {
    matches!(control, Control::Mode { until: Some(until_ms), .. } if *until_ms <= now_ms)
}

fn due(wakes: &BTreeSet<(i64, EpisodeKey)>, until_ms: i64) -> Vec<EpisodeKey> {
    wakes
        .iter()
        .take_while(|(at_ms, _)| *at_ms <= until_ms)
        .map(|(_, key)| key.clone())
        .collect()
}
