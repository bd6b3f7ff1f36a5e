//! What a fleet remembers, record by record, and how it is read back.
//!
//! Each value stands under its own key of the compacted state topic, so that a commit writes only what changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    Target,
    message::{Action, Choice, Control, IncidentState, OutcomeStatus},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::choose::{Model, Value};
use crate::{
    Error, Fleet,
    config::{Limit, ms},
    graph::Calls,
    storm::Storm,
};

/// Times of what was done, for limits. Shadow decisions are kept apart: neither uses up the other's budget, so that a policy in shadow
/// beside one in force says what it would have done in its place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct History {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    live: Vec<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shadow: Vec<i64>,
}

/// A limit that is used up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exhausted {
    pub limit: Limit,
    pub used: usize,
    /// When the oldest counted action no longer counts.
    pub free_ms: i64,
}

impl History {
    pub(crate) fn record(&mut self, now_ms: i64, shadow: bool, limits: &[Limit]) {
        let times = if shadow { &mut self.shadow } else { &mut self.live };
        times.push(now_ms);
        // Of a limit of n only the last n times matter; the floor keeps history for a limit that is raised later.
        let keep = limits.iter().map(|limit| limit.actions as usize).max().unwrap_or(0);
        let excess = times.len().saturating_sub(keep.clamp(64, 4096));
        times.drain(..excess);
    }

    /// The first limit that one more action would exceed.
    pub(crate) fn exhausted(&self, limits: &[Limit], now_ms: i64, shadow: bool) -> Option<Exhausted> {
        let times = if shadow { &self.shadow } else { &self.live };
        limits.iter().find_map(|&limit| {
            let per_ms = ms(limit.per);
            let from = times.partition_point(|&at| at <= now_ms.saturating_sub(per_ms));
            let counted = &times[from..];
            let used = counted.len();
            (used >= limit.actions as usize).then(|| Exhausted {
                limit,
                used,
                free_ms: match limit.actions {
                    0 => i64::MAX,
                    n => counted[used - n as usize].saturating_add(per_ms),
                },
            })
        })
    }
}

/// Time and what belongs to no one target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Clock {
    pub now_ms: i64,
    /// The first record that this fleet ever gave.
    pub first_activity_ms: Option<i64>,
    /// The last fencing token handed out: one counter for the fleet is monotonic for every target.
    pub sequence: u64,
    pub acted: History,
    /// Groups that were too sick lately; the fleet as a whole is the empty name.
    pub storms: BTreeMap<String, Storm>,
    pub storms_seen: u64,
}

/// What a `panes` partition last said of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartitionTime {
    pub watermark_ms: Option<i64>,
    pub population: BTreeMap<String, u64>,
}

/// The greatest population of a group in the last hour: a restarted detector that has seen little yet is no small group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peak {
    pub count: u64,
    pub at_ms: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct EpisodeKey {
    pub pipeline: String,
    pub policy: String,
    /// Key of what was watched; the service itself, or one of its instances.
    pub entity: String,
}

impl EpisodeKey {
    /// Names the episode among those of its service.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}/{}", self.pipeline, self.policy, self.entity)
    }
}

/// One window in which WHEN was met, or the last one of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub end_ms: i64,
    pub score: f64,
    /// The anomaly's event.
    pub event: Uuid,
}

/// What a policy knows of one entity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Episode {
    pub detector: String,
    /// The service that an action would touch.
    pub target: Target,
    /// The alarm is of a detector that speaks only at its begin and end: of silence, which is always the target's own.
    pub latched: bool,
    /// Windows that met WHEN, among the last n, in order of event time.
    pub meeting: Vec<Window>,
    pub latest: Window,
    pub telemetry_healthy: bool,
    /// The detector, or CLEAR, last said that all is well: windows without a record count as well.
    pub normal: bool,
    /// The episode is over.
    pub clear: bool,
    /// Meeting windows that end here or before belong to an episode that is over.
    pub cleared_end_ms: Option<i64>,
    /// When the watermark passes this the episode is looked at again.
    pub event_wake_ms: Option<i64>,
    /// What the last window that met WHEN said, for a learned choice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, Value>,
    pub case: Option<Case>,
}

impl Episode {
    /// Counts towards the fleet-wide gate: something meets WHEN, or an incident is open, under repair or not.
    pub(crate) fn sick(&self) -> bool {
        self.case.is_some() || (!self.normal && !self.meeting.is_empty())
    }

    pub(crate) fn pending(&self) -> Option<&Pending> {
        self.case.as_ref()?.pending.as_ref()
    }
}

/// An open incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub id: Uuid,
    pub opened_ms: i64,
    /// The window that opened it: what decisions rest on and name, whenever they are taken, so that they do not depend on
    /// how many more windows had been read by then.
    pub opened_by: Window,
    pub state: IncidentState,
    pub reason: String,
    /// Step of the ladder, from 1, and attempt, from 1: both are part of the action's id and never repeat together.
    pub step: u32,
    pub attempt: u32,
    /// Attempts since the step began, or since a person reset.
    pub tries: u32,
    /// Kinds of action already tried without effect.
    pub tried: Vec<String>,
    /// What made it worse is to be taken back with this, before anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
    pub actions: Vec<Uuid>,
    pub evidence: Vec<Uuid>,
    /// How often and when each gate's refusal was recorded.
    pub refusals: BTreeMap<String, Refusal>,
    pub refused_by: Option<String>,
    /// Step and attempt that a shadow decision was recorded for.
    pub shadowed: Option<(u32, u32)>,
    /// Incident events published.
    pub said: u32,
    pub wake_ms: Option<i64>,
    pub pending: Option<Pending>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub count: u32,
    pub at_ms: i64,
}

/// The one action that an incident has on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub action: Action,
    pub topic: String,
    pub score: f64,
    /// Probability with which it was chosen.
    pub propensity: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// A person is asked.
    Asked(Asked),
    Requested,
    Accepted,
    Started,
    Verifying(Watch),
    /// No executor said how it ended: a person has to look; the target stays locked.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub approval_id: Uuid,
    pub requested_ms: i64,
    pub expires_ms: i64,
    pub payload_sha256: String,
    /// Who agreed, each once.
    pub agreed: Vec<String>,
}

/// What was seen of the signal since the action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watch {
    pub from_ms: i64,
    pub to_ms: i64,
    /// The executor could not say whether it acted.
    pub unsure: bool,
    pub seen: u32,
    pub last: Option<Window>,
    pub last_meets: bool,
}

/// What is remembered of a service, whatever the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TargetState {
    pub lock: Option<Lock>,
    pub acted: History,
    pub last: Option<LastAction>,
    pub last_shadow: Option<LastAction>,
    /// Failed verdicts in a row.
    pub failures: u32,
    pub failed_ms: i64,
    /// There were as many as the breaker takes: until a person resets, or an action heals, nothing here is forgotten.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub broken: bool,
    /// By the thresholds of the service, what is here matters until then.
    #[serde(default)]
    pub keep_until_ms: i64,
    /// Changes between sick and healthy that no action caused, by policy and entity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub flips: BTreeMap<String, Vec<i64>>,
}

impl TargetState {
    /// Cooldowns are the policies', and may be long: what was done is remembered for a day at least.
    const REMEMBERED_MS: i64 = 24 * 3_600_000;

    /// Remembers what is here for so long from now on, at least.
    pub(crate) fn keep(&mut self, now_ms: i64, for_ms: i64) {
        self.keep_until_ms = self.keep_until_ms.max(now_ms.saturating_add(for_ms));
    }

    /// Counts an action in the limits, and as the last one.
    pub(crate) fn record(&mut self, action: LastAction, shadow: bool, limits: &[Limit]) {
        let longest_ms = limits.iter().map(|limit| ms(limit.per)).max().unwrap_or(0);
        self.keep(action.at_ms, longest_ms.max(Self::REMEMBERED_MS));
        self.acted.record(action.at_ms, shadow, limits);
        match shadow {
            true => self.last_shadow = Some(action),
            false => self.last = Some(action),
        }
    }

    /// When nothing here matters any more; `None` while a lock or an open breaker waits for somebody.
    pub(crate) fn forget_ms(&self) -> Option<i64> {
        let lock_ms = match &self.lock {
            Some(lock) => lock.until_ms?,
            None => 0,
        };
        (!self.broken).then_some(self.keep_until_ms.max(lock_ms))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lock {
    pub action_id: Uuid,
    /// `None`: until the action is settled.
    pub until_ms: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastAction {
    pub at_ms: i64,
    pub kind: String,
    pub incident: Uuid,
}

/// What is known of an action's success, for one policy, at one service or at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Experience {
    pub healed: u32,
    pub failed: u32,
}

/// What an executor said of a command that was not known yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Early {
    pub at_ms: i64,
    pub reports: Vec<Report>,
}

/// What counts of an executor's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub status: OutcomeStatus,
    pub code: u16,
    pub error: Option<String>,
}

/// How often a detector's alarms led to an action that healed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Precision {
    pub healed: u32,
    pub judged: u32,
}

/// The address of one durable record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StateKey {
    Clock,
    Position(String),
    Progress(i32),
    Peak(String),
    Control(String),
    Episode(EpisodeKey),
    Target(String),
    Budget(String),
    Precision(String),
    Early(Uuid),
    Calls(String),
    Experience(String),
}

impl StateKey {
    fn encode(&self) -> Vec<u8> {
        let text = match self {
            Self::Clock => "decide/clock".to_owned(),
            Self::Position(topic) => format!("decide/position/{topic}"),
            Self::Progress(partition) => format!("decide/progress/{partition}"),
            Self::Peak(group) => format!("decide/peak/{group}"),
            Self::Control(scope) => format!("decide/control/{scope}"),
            Self::Episode(key) => {
                let part = |text: &str| text.replace('%', "%25").replace('/', "%2F");
                format!(
                    "decide/episode/{}/{}/{}",
                    part(&key.pipeline),
                    part(&key.policy),
                    key.entity
                )
            }
            Self::Target(key) => format!("decide/target/{key}"),
            Self::Budget(policy) => format!("decide/budget/{policy}"),
            Self::Precision(detector) => format!("decide/precision/{detector}"),
            Self::Early(action) => format!("decide/early/{action}"),
            Self::Calls(caller) => format!("decide/calls/{caller}"),
            Self::Experience(of) => format!("decide/experience/{of}"),
        };
        text.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_prefix("decide/")?;
        let Some((kind, rest)) = text.split_once('/') else {
            return (text == "clock").then_some(Self::Clock);
        };
        let owned = rest.to_owned();
        Some(match kind {
            "position" => Self::Position(owned),
            "progress" => Self::Progress(rest.parse().ok()?),
            "peak" => Self::Peak(owned),
            "control" => Self::Control(owned),
            "episode" => {
                let part = |text: &str| text.replace("%2F", "/").replace("%25", "%");
                let (pipeline, rest) = rest.split_once('/')?;
                let (policy, entity) = rest.split_once('/')?;
                Self::Episode(EpisodeKey {
                    pipeline: part(pipeline),
                    policy: part(policy),
                    entity: entity.to_owned(),
                })
            }
            "target" => Self::Target(owned),
            "budget" => Self::Budget(owned),
            "precision" => Self::Precision(owned),
            "early" => Self::Early(rest.parse().ok()?),
            "calls" => Self::Calls(owned),
            "experience" => Self::Experience(owned),
            _ => return None,
        })
    }
}

/// Everything durable.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub clock: Clock,
    pub positions: BTreeMap<String, i64>,
    pub progress: BTreeMap<i32, PartitionTime>,
    pub peaks: BTreeMap<String, Peak>,
    pub controls: BTreeMap<String, Control>,
    pub episodes: BTreeMap<EpisodeKey, Episode>,
    pub targets: BTreeMap<String, TargetState>,
    pub budgets: BTreeMap<String, History>,
    pub precision: BTreeMap<String, Precision>,
    pub early: BTreeMap<Uuid, Early>,
    pub calls: BTreeMap<String, Calls>,
    pub experience: BTreeMap<String, Experience>,
}

/// What follows from the state, kept beside it so that no question costs a scan.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Index {
    /// When, in decide's time, an episode is looked at again.
    pub wakes: BTreeSet<(i64, EpisodeKey)>,
    /// When, by the watermark, an episode is looked at again.
    pub event_wakes: BTreeSet<(i64, EpisodeKey)>,
    /// Sick entities by group.
    pub sick: BTreeMap<String, BTreeMap<String, Sick>>,
    /// Sick services by key, over all groups.
    pub sick_targets: BTreeMap<String, Sick>,
    pub actions: BTreeMap<Uuid, EpisodeKey>,
    /// Open incidents by the service they would act on.
    pub cases: BTreeSet<(String, EpisodeKey)>,
    /// Models in force, by the scope of their control record.
    pub models: BTreeMap<String, Arc<InForce>>,
    /// When a service can be forgotten.
    pub forgets: BTreeSet<(i64, String)>,
}

/// A model with its version, which is dear to compute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InForce {
    pub model: Model,
    pub version: String,
}

impl InForce {
    pub(crate) fn read(model: &serde_json::Value) -> Result<Arc<Self>, String> {
        let model = Model::from_json(model.to_string().as_bytes())?;
        let version = model.version();
        Ok(Arc::new(Self { model, version }))
    }
}

/// What makes an entity or a service sick.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sick {
    /// The service's name.
    pub name: String,
    /// Sick episodes, and how many of them are of alarms that no other service can explain.
    pub episodes: u32,
    pub own: u32,
}

impl Sick {
    fn add(sick: &mut BTreeMap<String, Sick>, key: String, episode: &Episode) {
        let entry = sick.entry(key).or_insert_with(|| Sick {
            name: episode.target.name.clone(),
            episodes: 0,
            own: 0,
        });
        entry.episodes += 1;
        entry.own += u32::from(episode.latched);
    }

    fn remove(sick: &mut BTreeMap<String, Sick>, key: &str, episode: &Episode) {
        let Some(entry) = sick.get_mut(key) else { return };
        entry.episodes -= 1;
        entry.own -= u32::from(episode.latched);
        if entry.episodes == 0 {
            sick.remove(key);
        }
    }
}

impl Index {
    pub(crate) fn add(&mut self, key: &EpisodeKey, episode: &Episode) {
        if let Some(ms) = episode.event_wake_ms {
            self.event_wakes.insert((ms, key.clone()));
        }
        if episode.sick() {
            let group = self.sick.entry(group(&key.pipeline, &episode.detector)).or_default();
            Sick::add(group, key.entity.clone(), episode);
            Sick::add(&mut self.sick_targets, episode.target.key(), episode);
        }
        let Some(case) = &episode.case else { return };
        self.cases.insert((episode.target.key(), key.clone()));
        if let Some(ms) = case.wake_ms {
            self.wakes.insert((ms, key.clone()));
        }
        if let Some(pending) = &case.pending {
            self.actions.insert(pending.action.action_id, key.clone());
        }
    }

    pub(crate) fn remove(&mut self, key: &EpisodeKey, episode: &Episode) {
        if let Some(ms) = episode.event_wake_ms {
            self.event_wakes.remove(&(ms, key.clone()));
        }
        if episode.sick() {
            let name = group(&key.pipeline, &episode.detector);
            if let Some(group) = self.sick.get_mut(&name) {
                Sick::remove(group, &key.entity, episode);
                if group.is_empty() {
                    self.sick.remove(&name);
                }
            }
            Sick::remove(&mut self.sick_targets, &episode.target.key(), episode);
        }
        let Some(case) = &episode.case else { return };
        self.cases.remove(&(episode.target.key(), key.clone()));
        if let Some(ms) = case.wake_ms {
            self.wakes.remove(&(ms, key.clone()));
        }
        if let Some(pending) = &case.pending {
            self.actions.remove(&pending.action.action_id);
        }
    }
}

/// The peers among which a share is counted: the entities of one detector.
pub(crate) fn group(pipeline: &str, detector: &str) -> String {
    format!("{pipeline}.{detector}")
}

impl Fleet {
    /// Reads a state record of the compacted topic, in log order; `None` is a tombstone.
    pub fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        let Some(address) = StateKey::decode(key) else {
            return Err(Error::Key(String::from_utf8_lossy(key).into_owned()));
        };
        let state = &mut self.state;
        match address {
            StateKey::Clock => state.clock = read(key, value)?.unwrap_or_default(),
            StateKey::Position(topic) => put(&mut state.positions, topic, read(key, value)?),
            StateKey::Progress(partition) => put(&mut state.progress, partition, read(key, value)?),
            StateKey::Peak(group) => put(&mut state.peaks, group, read(key, value)?),
            StateKey::Control(scope) => {
                let value = read(key, value)?;
                self.index.models.remove(&scope);
                if let Some(Control::Model { model, .. }) = &value {
                    let model = InForce::read(model).ok();
                    self.index.models.extend(model.map(|model| (scope.clone(), model)));
                }
                put(&mut self.state.controls, scope, value);
            }
            StateKey::Target(target) => {
                let value = read(key, value)?;
                self.replace_target(target, value);
            }
            StateKey::Budget(policy) => put(&mut state.budgets, policy, read(key, value)?),
            StateKey::Precision(detector) => put(&mut state.precision, detector, read(key, value)?),
            StateKey::Early(action) => put(&mut state.early, action, read(key, value)?),
            StateKey::Calls(caller) => put(&mut state.calls, caller, read(key, value)?),
            StateKey::Experience(of) => put(&mut state.experience, of, read(key, value)?),
            StateKey::Episode(episode_key) => {
                let episode: Option<Episode> = read(key, value)?;
                if let Some(old) = self.state.episodes.remove(&episode_key) {
                    self.index.remove(&episode_key, &old);
                }
                if let Some(episode) = episode {
                    self.index.add(&episode_key, &episode);
                    self.state.episodes.insert(episode_key, episode);
                }
            }
        }
        Ok(())
    }

    /// State records to write in this commit: what changed since the last call. `None` is a tombstone.
    pub fn take_dirty(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|address| (address.encode(), self.value(&address)))
            .collect()
    }

    pub(crate) fn replace_target(&mut self, key: String, value: Option<TargetState>) {
        let old = self.state.targets.get(&key).and_then(TargetState::forget_ms);
        if let Some(ms) = old {
            self.index.forgets.remove(&(ms, key.clone()));
        }
        match value.filter(|value| *value != TargetState::default()) {
            Some(value) => {
                if let Some(ms) = value.forget_ms() {
                    self.index.forgets.insert((ms, key.clone()));
                }
                self.state.targets.insert(key, value);
            }
            None => {
                self.state.targets.remove(&key);
            }
        }
    }

    fn value(&self, address: &StateKey) -> Option<Vec<u8>> {
        let state = &self.state;
        match address {
            StateKey::Clock => write(Some(&state.clock)),
            StateKey::Position(topic) => write(state.positions.get(topic)),
            StateKey::Progress(partition) => write(state.progress.get(partition)),
            StateKey::Peak(group) => write(state.peaks.get(group)),
            StateKey::Control(scope) => write(state.controls.get(scope)),
            StateKey::Episode(key) => write(state.episodes.get(key)),
            StateKey::Target(target) => write(state.targets.get(target)),
            StateKey::Budget(policy) => write(state.budgets.get(policy)),
            StateKey::Precision(detector) => write(state.precision.get(detector)),
            StateKey::Early(action) => write(state.early.get(action)),
            StateKey::Calls(caller) => write(state.calls.get(caller)),
            StateKey::Experience(of) => write(state.experience.get(of)),
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn read<T: DeserializeOwned>(key: &[u8], value: Option<&[u8]>) -> Result<Option<T>, Error> {
    value
        .map(serde_json::from_slice)
        .transpose()
        .map_err(|source| Error::Value {
            key: String::from_utf8_lossy(key).into_owned(),
            source,
        })
}

fn write<T: Serialize>(value: Option<&T>) -> Option<Vec<u8>> {
    value.map(|value| serde_json::to_vec(value).expect("state has string keys and finite numbers"))
}
