//! From anomalies to incidents: k windows of n, clearing, and what the passing of event time means.

use std::collections::BTreeMap;

use protocol::{
    CloudEvent, Target, cloudevent, id,
    log::Note,
    message::{Anomaly, Incident, IncidentState, Verdict},
};
use serde_json::Value;

use crate::{
    Choice, Effect, Fleet, Policy,
    config::{glob, ms},
    follow::Then,
    policy::SLACK_STEPS,
    state::{Case, Episode, EpisodeKey, Phase, Window, group},
};

/// Evidence and actions listed in an incident; the rest is in `decisions`.
const LISTED_MAX: usize = 16;

/// What one anomaly record means to one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Meets,
    Clears,
    Neither,
}

impl Fleet {
    pub(crate) fn on_anomaly(&mut self, event: &CloudEvent, data: &Anomaly, out: &mut Vec<Effect>) {
        if !data.score.is_finite() {
            out.push(Effect::Unusable(format!(
                "score of anomaly {} is not a finite number",
                event.id
            )));
            return;
        }
        let group = group(&data.pipeline, &data.detector);
        if self.config.calls_detectors.iter().any(|pattern| glob(pattern, &group)) {
            let named = |column: &str| data.target.get(column).and_then(Value::as_str);
            match (named("caller"), named("callee")) {
                (Some(caller), Some(callee)) => self.on_call(caller, callee),
                _ => out.push(Effect::Unusable(format!(
                    "{group} says who calls whom, and its KEY is not (caller, callee)"
                ))),
            }
        }
        let watching = self.watching.get(&(data.pipeline.clone(), data.detector.clone()));
        for policy in watching.cloned().unwrap_or_default() {
            match names(&self.config.tenant, &policy.target_key_column, data) {
                Ok((target, entity)) => {
                    let key = EpisodeKey {
                        pipeline: policy.pipeline.clone(),
                        policy: policy.name.clone(),
                        entity: entity.key(),
                    };
                    self.on_window(&policy, &key, target, event, data, out);
                }
                Err(reason) => {
                    out.push(Effect::Unusable(format!("policy {}: {reason}", policy.id())));
                }
            }
        }
    }

    fn on_window(
        &mut self,
        policy: &Policy,
        key: &EpisodeKey,
        target: Target,
        event: &CloudEvent,
        data: &Anomaly,
        out: &mut Vec<Effect>,
    ) {
        let reading = read(policy, data);
        let window = Window {
            end_ms: data.window_end,
            score: data.score,
            event: event.id,
        };
        if !self.state.episodes.contains_key(key) && !self.begin(policy, key, target, window, reading, out) {
            return;
        }
        let healthy = data.telemetry_healthy;
        let cleared = self.edit(key, |episode| {
            if reading == Reading::Meets && matches!(policy.action, Choice::Choose(_)) {
                episode.context = crate::pick::context(data);
            }
            fold(episode, policy, window, reading, healthy)
        });
        if cleared == Some(true) {
            self.on_clear(key, out);
        } else {
            self.open_if_firing(policy, key, out);
            self.look_at_signal(key, out);
        }
    }

    /// A first window that meets WHEN begins an episode; any other is no news.
    fn begin(
        &mut self,
        policy: &Policy,
        key: &EpisodeKey,
        target: Target,
        window: Window,
        reading: Reading,
        out: &mut Vec<Effect>,
    ) -> bool {
        if reading != Reading::Meets {
            return false;
        }
        if self.state.episodes.len() >= self.config.episodes_max {
            let max = self.config.episodes_max;
            out.push(Effect::Unusable(format!(
                "{} episodes are open, the most that episodes_max allows; {} is not followed",
                max, key.entity
            )));
            return false;
        }
        let episode = Episode {
            detector: policy.detector.clone(),
            target,
            latched: policy.latched,
            meeting: Vec::new(),
            latest: window,
            telemetry_healthy: true,
            normal: false,
            clear: false,
            cleared_end_ms: None,
            event_wake_ms: None,
            context: BTreeMap::new(),
            case: None,
        };
        self.insert_episode(key.clone(), episode);
        true
    }

    fn open_if_firing(&mut self, policy: &Policy, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let firing = !episode.clear && episode.meeting.len() >= policy.for_k.max(1) as usize;
        if episode.case.is_some() || !firing {
            return;
        }
        let now_ms = self.now_ms();
        let start_ms = episode.meeting[0].end_ms;
        let case_id = id::incident(&self.config.tenant, &key.entity, &key.policy, start_ms);
        let evidence = episode.meeting.iter().map(|window| window.event).take(LISTED_MAX);
        let case = Case {
            id: case_id,
            opened_ms: now_ms,
            opened_by: episode.latest,
            state: IncidentState::Open,
            reason: format!("{} of {} windows met WHEN", episode.meeting.len(), policy.for_n.max(1)),
            step: 1,
            attempt: 1,
            tries: 0,
            tried: Vec::new(),
            undo: None,
            actions: Vec::new(),
            evidence: evidence.collect(),
            refusals: BTreeMap::new(),
            refused_by: None,
            shadowed: None,
            said: 0,
            wake_ms: None,
            pending: None,
        };
        let target = episode.target.key();
        self.edit(key, |episode| episode.case = Some(case));
        self.flip(key, &target);
        self.say_incident(key, out);
        out.push(Effect::Note(Note::IncidentOpened {
            target: key.entity.clone(),
            incident: case_id,
        }));
    }

    /// Whether the incident's windows meet WHEN k times in n by now, windows without a record counted as not meeting.
    pub(crate) fn firing(&self, policy: &Policy, episode: &Episode) -> bool {
        if episode.clear {
            return false;
        }
        if policy.latched {
            return true;
        }
        let silent_since_ms = self.watermark_ms().map_or(i64::MIN, |watermark_ms| {
            watermark_ms - policy.lateness_ms - SLACK_STEPS * policy.step_ms()
        });
        let newest_ms = episode.latest.end_ms.max(silent_since_ms);
        let counted = episode
            .meeting
            .iter()
            .filter(|w| w.end_ms > newest_ms - policy.span_ms());
        counted.count() >= policy.for_k.max(1) as usize
    }

    /// The watermark passed what an episode waited for.
    pub(crate) fn on_watermark(&mut self, key: &EpisodeKey, watermark_ms: i64, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let policy = self.policy(key);
        let Some(case) = &episode.case else {
            self.remove_episode(key);
            return;
        };
        let latched = policy.as_ref().is_some_and(|policy| policy.latched);
        if let Some(Phase::Verifying(watch)) = case.pending.as_ref().map(|pending| &pending.phase) {
            let to_ms = watch.to_ms;
            if watermark_ms >= to_ms {
                self.judge_effect(key, out);
            } else {
                self.edit(key, |episode| episode.event_wake_ms = Some(to_ms));
            }
            return;
        }
        let faded = policy.as_ref().and_then(|policy| fades_ms(episode, policy));
        if faded.is_some_and(|fades_ms| watermark_ms >= fades_ms) {
            self.edit(key, |episode| {
                episode.meeting.clear();
                episode.clear = true;
                episode.cleared_end_ms = episode.cleared_end_ms.max(Some(episode.latest.end_ms));
                episode.event_wake_ms = None;
            });
            return self.on_clear(key, out);
        }
        self.edit(key, |episode| episode.event_wake_ms = None);
        if !latched && !episode_waits(self.state.episodes.get(key)) {
            self.close(key, "the signal ended without clearing", out);
        }
    }

    /// The signal is back to normal, by CLEAR or by the detector's clearing record.
    fn on_clear(&mut self, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        if episode.case.is_none() {
            return;
        }
        let reason = "the signal recovered before the action started";
        match episode.pending().map(|pending| pending.phase.clone()) {
            None => self.close(key, "cleared", out),
            Some(Phase::Asked(_)) => {
                self.withdraw_request(key, reason, out);
                self.settle_verdict(key, Verdict::Superseded, reason, Then::Close, out);
            }
            Some(Phase::Requested | Phase::Accepted) => {
                self.cancel(key, reason, out);
                self.settle_verdict(key, Verdict::Superseded, reason, Then::Close, out);
            }
            // What the executor reports decides what the clearing means.
            Some(Phase::Started) => {}
            Some(Phase::Verifying(_)) => self.look_at_signal(key, out),
            Some(Phase::Lost) => {
                let reason = "the signal cleared, but no executor said whether it acted";
                self.settle_verdict(key, Verdict::Inconclusive, reason, Then::Close, out);
            }
        }
    }

    /// Ends an incident whose action, if any, is settled.
    pub(crate) fn close(&mut self, key: &EpisodeKey, reason: &str, out: &mut Vec<Effect>) {
        self.end(key, reason, true, out);
    }

    pub(crate) fn close_healed(&mut self, key: &EpisodeKey, reason: &str, out: &mut Vec<Effect>) {
        self.end(key, reason, false, out);
    }

    fn end(&mut self, key: &EpisodeKey, reason: &str, by_itself: bool, out: &mut Vec<Effect>) {
        self.set_state(key, IncidentState::Closed, reason, None, out);
        let rest_ms = self.policy(key).map_or(0, |policy| policy.rest_ms());
        let Some(Some((case, target))) = self.edit(key, |episode| {
            // Windows of this episode that still arrive must not open it again.
            let end_ms = episode.cleared_end_ms.max(Some(episode.latest.end_ms));
            episode.cleared_end_ms = end_ms;
            episode.meeting.clear();
            (episode.clear, episode.normal) = (true, true);
            episode.event_wake_ms = end_ms.map(|end_ms| end_ms.saturating_add(rest_ms));
            Some((episode.case.take()?, episode.target.key()))
        }) else {
            return;
        };
        // What another policy did at the service meanwhile may have ended it as well.
        let acted = self.state.targets.get(&target).and_then(|state| state.last.as_ref());
        let acted = acted.is_some_and(|last| last.incident != case.id && last.at_ms >= case.opened_ms);
        if by_itself && !acted {
            self.flip(key, &target);
        } else {
            self.edit_target(&target, |state| drop(state.flips.remove(&key.name())));
        }
        // Learning goes on when the last incident at the entity ends.
        let others = self.index.cases.range((target.clone(), EpisodeKey::default())..);
        let mut others = others.take_while(|(at, _)| *at == target);
        let open = others.any(|(_, other)| other.entity == key.entity);
        if !open {
            out.push(Effect::Note(Note::IncidentClosed {
                target: key.entity.clone(),
                incident: case.id,
            }));
        }
    }

    /// A service changed between sick and healthy, and no action of ours did it.
    fn flip(&mut self, key: &EpisodeKey, target: &str) {
        let now_ms = self.now_ms();
        let (within_ms, max) = self.flapping(key);
        let (from_ms, keep) = (now_ms.saturating_sub(within_ms), max as usize + 1);
        self.edit_target(target, |state| {
            state.keep(now_ms, within_ms);
            state.flips.entry(key.name()).or_default().push(now_ms);
            state.flips.retain(|_, times| {
                times.retain(|&at_ms| at_ms > from_ms);
                times.drain(..times.len().saturating_sub(keep));
                !times.is_empty()
            });
        });
    }

    /// For how long, and how many, changes are remembered: as the strictest of the actions that could follow asks.
    fn flapping(&self, key: &EpisodeKey) -> (i64, u32) {
        let (Some(policy), Some(episode)) = (self.policy(key), self.state.episodes.get(key)) else {
            return (ms(self.config.flips_within), self.config.flips_max);
        };
        let kinds = policy.action.kinds(&self.config.choose.actions);
        let asked = kinds.iter().map(|kind| {
            let config = self.thresholds(&episode.target.name, kind);
            (ms(config.flips_within), config.flips_max)
        });
        asked.fold((0, 0), |(within_ms, max), (a, b)| (within_ms.max(a), max.max(b)))
    }

    /// Moves an incident to a state and says so, unless nothing changed.
    pub(crate) fn set_state(
        &mut self,
        key: &EpisodeKey,
        state: IncidentState,
        reason: &str,
        wake_ms: Option<i64>,
        out: &mut Vec<Effect>,
    ) {
        let changed = self.edit_case(key, |case| {
            let changed = case.state != state || case.reason != reason;
            case.state = state;
            reason.clone_into(&mut case.reason);
            case.wake_ms = wake_ms;
            changed
        });
        if changed == Some(true) {
            self.say_incident(key, out);
        }
    }

    fn say_incident(&mut self, key: &EpisodeKey, out: &mut Vec<Effect>) {
        self.edit_case(key, |case| case.said += 1);
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(case) = &episode.case else { return };
        let event_id = id::derived("incident_event", &[&case.id.to_string(), &case.said.to_string()]);
        let data = Incident {
            incident_id: case.id,
            target_key: episode.target.key(),
            policy: key.policy.clone(),
            pipeline: key.pipeline.clone(),
            detector: episode.detector.clone(),
            state: case.state,
            opened_at: case.opened_ms,
            changed_at: self.now_ms(),
            actions: case.actions.clone(),
            reason: case.reason.clone(),
        };
        let event = self.event(cloudevent::INCIDENT, event_id, key, episode, case.id);
        out.push(Effect::Incident { event, data });
    }
}

/// An action whose end is not known yet keeps its incident open, whatever the signal does.
fn episode_waits(episode: Option<&Episode>) -> bool {
    episode.is_some_and(|episode| episode.pending().is_some())
}

fn read(policy: &Policy, data: &Anomaly) -> Reading {
    let named = |list: &[String]| list.contains(&policy.name);
    let cleared = named(&data.clears) || (policy.clear_windows.is_none() && !data.is_anomaly);
    match (named(&data.meets), cleared) {
        (true, _) => Reading::Meets,
        (false, true) => Reading::Clears,
        (false, false) => Reading::Neither,
    }
}

/// Takes a window into an episode; whether it ended the episode. A window heard twice changes nothing.
fn fold(episode: &mut Episode, policy: &Policy, window: Window, reading: Reading, healthy: bool) -> bool {
    let heard = episode.meeting.iter().any(|w| w.end_ms == window.end_ms);
    let before = episode.cleared_end_ms.is_some_and(|end_ms| window.end_ms <= end_ms);
    if reading == Reading::Meets && (heard || before) {
        return false;
    }
    // A clearing older than the episode belongs to one before.
    let first_ms = episode.meeting.first().map(|w| w.end_ms);
    let stale = first_ms.is_some_and(|first_ms| window.end_ms.saturating_add(policy.step_ms()) <= first_ms);
    if reading == Reading::Clears && stale {
        return false;
    }
    if window.end_ms >= episode.latest.end_ms {
        episode.latest = window;
        episode.telemetry_healthy = healthy;
    }
    if let Some(watch) = watch_mut(episode)
        && window.end_ms > watch.from_ms
    {
        watch.seen += 1;
        watch.last = Some(window);
        watch.last_meets = reading == Reading::Meets;
    }
    if reading == Reading::Meets {
        (episode.clear, episode.normal) = (false, false);
        let at = episode.meeting.partition_point(|w| w.end_ms < window.end_ms);
        episode.meeting.insert(at, window);
    }
    if reading == Reading::Clears {
        episode.normal = true;
    }
    let newest_ms = episode.latest.end_ms;
    if !policy.latched {
        episode
            .meeting
            .retain(|w| w.end_ms > newest_ms.saturating_sub(policy.span_ms()));
        // Of one window only the newest counts, however far the ends stand apart.
        if policy.for_n <= 1 && reading != Reading::Meets {
            episode.meeting.clear();
        }
    }
    let excess = episode.meeting.len().saturating_sub(policy.for_n.max(1) as usize);
    episode.meeting.drain(..excess);
    let over = is_over(episode, policy, reading);
    if over {
        episode.meeting.clear();
        episode.clear = true;
        episode.cleared_end_ms = episode.cleared_end_ms.max(Some(window.end_ms));
    }
    episode.event_wake_ms = event_wake(episode, policy);
    over
}

/// A good window within k of n resets nothing. An open incident ends at CLEAR; without CLEAR, when so many good windows
/// passed that WHEN is no longer met k times in n. A latched alarm ends when its detector says so.
fn is_over(episode: &Episode, policy: &Policy, reading: Reading) -> bool {
    let enough = episode.meeting.len() >= policy.for_k.max(1) as usize;
    match reading {
        Reading::Meets => false,
        Reading::Clears if policy.latched => true,
        Reading::Clears if policy.clear_windows.is_some() => episode.case.is_some(),
        Reading::Neither if policy.clear_windows.is_some() || policy.latched => false,
        Reading::Clears | Reading::Neither => episode.case.is_some() && !enough,
    }
}

/// When the watermark next means something to an episode.
pub(crate) fn event_wake(episode: &Episode, policy: &Policy) -> Option<i64> {
    if let Some(Phase::Verifying(watch)) = episode.pending().map(|pending| &pending.phase) {
        return Some(watch.to_ms);
    }
    if let Some(fades_ms) = fades_ms(episode, policy) {
        return Some(fades_ms);
    }
    let waits = policy.latched && !episode.clear;
    (!waits).then(|| episode.latest.end_ms.saturating_add(policy.rest_ms()))
}

/// When an alarm that its detector has ended is over by the count of windows, unless WHEN is met again.
fn fades_ms(episode: &Episode, policy: &Policy) -> Option<i64> {
    let (k, meeting) = (policy.for_k.max(1) as usize, &episode.meeting);
    if !episode.normal || episode.clear || episode.case.is_none() || policy.clear_windows.is_some() {
        return None;
    }
    let last_needed = meeting.get(meeting.len().checked_sub(k)?)?;
    let closes_ms = last_needed.end_ms.saturating_add(policy.span_ms());
    Some(closes_ms.saturating_add(policy.lateness_ms.max(0)))
}

fn watch_mut(episode: &mut Episode) -> Option<&mut crate::state::Watch> {
    match &mut episode.case.as_mut()?.pending.as_mut()?.phase {
        Phase::Verifying(watch) => Some(watch),
        _ => None,
    }
}

/// The service to act on, and what exactly was watched: the service, or one of its parts when KEY has more columns.
fn names(tenant: &str, column: &str, data: &Anomaly) -> Result<(Target, Target), String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    };
    let service = data
        .target
        .get(column)
        .ok_or_else(|| format!("the anomaly has no KEY column {column:?} to act on"))?;
    // An empty name must never come to mean "all".
    let name = text(service)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("KEY column {column:?} names no service"))?;
    let target = Target::service(tenant, &name);
    let others: Vec<String> = data
        .target
        .iter()
        .filter(|(name, _)| *name != column)
        .map(|(name, value)| format!("{name}={}", text(value).unwrap_or_default()))
        .collect();
    if others.is_empty() {
        return Ok((target.clone(), target));
    }
    let entity = Target {
        scope: "instance".into(),
        id: others.join(","),
        ..target.clone()
    };
    Ok((target, entity))
}
