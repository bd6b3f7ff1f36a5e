//! The gates between a firing episode and a command, in order. The first that refuses ends the matter for now; every
//! gate asked stands in the decision with what it compared. Whatever a gate cannot know, it refuses.
//!
//! Values named `*_ms` are wall clock, values named `*_now` depend on what other targets' records had been read by then:
//! two exact runs may differ in them, and in nothing else.

use std::{borrow::Cow, collections::BTreeMap};

use protocol::message::{Control, Gate, Mode};
use serde_json::{Value, json};

use crate::{
    ActionClass, Fleet, FleetConfig, Policy,
    config::{Impact, glob, ms},
    state::{Case, Episode, EpisodeKey, LastAction, TargetState},
};

/// When a refused incident is worth another look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    At(i64),
    /// Nobody can say; soon.
    Later,
    /// When a control record changes.
    Control,
    /// When a person has looked.
    Never,
}

/// What all gates together say.
#[derive(Clone, Debug)]
pub(crate) struct Judgement {
    pub gates: Vec<Gate>,
    pub refused: Option<Retry>,
    /// How far the decision may go, when nothing refuses.
    pub mode: Mode,
}

impl Judgement {
    pub(crate) fn refused_by(&self) -> Option<&str> {
        self.refused?;
        self.gates.last().map(|gate| gate.gate.as_str())
    }
}

/// What the gates look at: one incident and the action it proposes.
pub(crate) struct Proposal<'a> {
    pub key: &'a EpisodeKey,
    pub policy: &'a Policy,
    pub episode: &'a Episode,
    pub case: &'a Case,
    pub kind: &'a str,
    pub class: ActionClass,
    pub impact: Impact,
    /// Thresholds for this service and action.
    pub config: Cow<'a, FleetConfig>,
    pub mode: Mode,
    /// What is remembered of the service.
    pub target: &'a TargetState,
}

type Answer = (Result<(), Retry>, BTreeMap<String, Value>);

fn answer<const N: usize>(result: Result<(), Retry>, values: [(&str, Value); N]) -> Answer {
    let values = values.into_iter().map(|(name, value)| (name.to_owned(), value));
    (result, values.collect())
}

fn unless(refused: bool, retry: Retry) -> Result<(), Retry> {
    if refused { Err(retry) } else { Ok(()) }
}

type Ask = fn(&Fleet, &Proposal<'_>) -> Answer;

/// Name and question, in order.
const GATES: [(&str, Ask); 18] = [
    ("control", control),
    ("protected", protected),
    ("telemetry", telemetry),
    ("fleet_wide", fleet_wide),
    ("startup_grace", startup_grace),
    ("maintenance", maintenance),
    ("hold_down", hold_down),
    ("episode", episode),
    ("flapping", flapping),
    ("dependency", dependency),
    ("overload", overload),
    ("in_flight", in_flight),
    ("cooldown", cooldown),
    ("limit", limit),
    ("concurrency", concurrency),
    ("breaker", breaker),
    ("prediction", prediction),
    ("precision", precision),
];

impl Fleet {
    /// Asks every gate about a proposed action until one refuses.
    pub(crate) fn judge(&self, key: &EpisodeKey, policy: &Policy, episode: &Episode, kind: &str) -> Option<Judgement> {
        let case = episode.case.as_ref()?;
        let nothing = TargetState::default();
        let class = self.config.action_class(kind);
        let proposal = Proposal {
            key,
            policy,
            episode,
            case,
            kind,
            impact: class.impact,
            class,
            config: self.thresholds(&episode.target.name, kind),
            mode: self.effective_mode(policy, &episode.target.name, kind),
            target: self.state.targets.get(&episode.target.key()).unwrap_or(&nothing),
        };
        let mut gates = Vec::new();
        for (name, ask) in GATES {
            let (result, values) = ask(self, &proposal);
            gates.push(Gate {
                gate: name.to_owned(),
                passed: result.is_ok(),
                values,
            });
            if let Err(retry) = result {
                return Some(Judgement {
                    gates,
                    refused: Some(retry),
                    mode: proposal.mode,
                });
            }
        }
        Some(Judgement {
            gates,
            refused: None,
            mode: self.trusted_mode(&proposal),
        })
    }

    /// The thresholds that count for a service and action: the configuration, its overrides, and what control sets live.
    pub(crate) fn thresholds(&self, service: &str, kind: &str) -> Cow<'_, FleetConfig> {
        let configured = self
            .config
            .overrides
            .iter()
            .map(|over| (&over.service, &over.action, &over.set));
        let controlled = self
            .state
            .controls
            .range("thresholds/".to_owned().."thresholds0".to_owned());
        let controlled = controlled.filter_map(|(_, control)| match control {
            Control::Thresholds {
                service, action, set, ..
            } => Some((service, action, set)),
            _ => None,
        });
        let matching = configured
            .chain(controlled)
            .filter(|(at, of, _)| glob(at, service) && glob(of, kind));
        let mut config = Cow::Borrowed(&self.config);
        for (_, _, set) in matching {
            // Both were checked when they were read.
            if let Ok(changed) = config.with(set) {
                config = Cow::Owned(changed);
            }
        }
        config
    }

    /// The more cautious of the policy's mode and the control's.
    pub(crate) fn effective_mode(&self, policy: &Policy, service: &str, kind: &str) -> Mode {
        policy.mode.min(self.control_mode(service, kind))
    }

    /// The most specific control record of a service and action, or the fleet's default.
    fn control_mode(&self, service: &str, kind: &str) -> Mode {
        let pairs = [(service, kind), (service, "*"), ("*", kind), ("*", "*")];
        let found = pairs.iter().find_map(|(service, action)| {
            match self.state.controls.get(&format!("mode/{service}/{action}")) {
                Some(Control::Mode { mode, .. }) => Some(*mode),
                _ => None,
            }
        });
        found.unwrap_or_else(|| self.thresholds(service, kind).default_mode)
    }

    /// A high-impact action on a detector whose alarms are not yet known to be right needs a person.
    fn trusted_mode(&self, proposal: &Proposal<'_>) -> Mode {
        let doubtful = proposal.impact == Impact::High && self.measured_precision(proposal).is_none();
        match doubtful {
            true => proposal.mode.min(Mode::Approve),
            false => proposal.mode,
        }
    }

    /// The share of judged actions on this detector's alarms that healed; `None` with too few of them.
    fn measured_precision(&self, proposal: &Proposal<'_>) -> Option<f64> {
        const JUDGED_MIN: u32 = 10;
        let group = crate::state::group(&proposal.key.pipeline, &proposal.policy.detector);
        let precision = self.state.precision.get(&group)?;
        (precision.judged >= JUDGED_MIN).then(|| f64::from(precision.healed) / f64::from(precision.judged))
    }
}

/// How sick a group is.
pub(crate) struct Sickness {
    /// Sick roots.
    pub sick: u64,
    pub population: u64,
    /// The largest population of the last hour.
    pub peak: u64,
}

fn control(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let engaged = matches!(
        fleet.state.controls.get("kill_switch"),
        Some(Control::KillSwitch { engaged: true, .. })
    );
    let control = fleet.control_mode(&proposal.episode.target.name, proposal.kind);
    answer(
        unless(engaged || proposal.mode == Mode::Off, Retry::Control),
        [
            ("kill_switch", json!(engaged)),
            ("mode_policy", json!(proposal.policy.mode)),
            ("mode_control", json!(control)),
            ("mode", json!(proposal.mode)),
        ],
    )
}

fn protected(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let name = &proposal.episode.target.name;
    let configured = proposal
        .config
        .protected
        .iter()
        .find(|pattern| glob(pattern, name))
        .cloned();
    let controlled = fleet.state.controls.values().find_map(|control| match control {
        Control::Protected { service, .. } if glob(service, name) => Some(service.clone()),
        _ => None,
    });
    let by = configured.or(controlled).filter(|_| proposal.impact > Impact::None);
    answer(unless(by.is_some(), Retry::Control), [("protected_by", json!(by))])
}

fn telemetry(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let lag_ms = fleet.watermark_ms().map(|watermark_ms| fleet.now_ms() - watermark_ms);
    let lag_max_ms = ms(proposal.config.telemetry_lag_max);
    let healthy = proposal.episode.telemetry_healthy;
    let fresh = lag_ms.is_some_and(|lag_ms| lag_ms <= lag_max_ms);
    answer(
        unless(!healthy || !fresh, Retry::Later),
        [
            ("sources_alive", json!(healthy)),
            ("lag_ms", json!(lag_ms)),
            ("lag_max_ms", json!(lag_max_ms)),
        ],
    )
}

fn fleet_wide(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let group = crate::state::group(&proposal.key.pipeline, &proposal.policy.detector);
    let cooldown_ms = ms(proposal.config.storm_cooldown);
    let calm_at_ms = [group.as_str(), ""]
        .into_iter()
        .filter_map(|group| Some(fleet.state.clock.storms.get(group)?.last_ms))
        .max()
        .map(|last_ms| last_ms.saturating_add(cooldown_ms))
        .filter(|calm_at_ms| fleet.now_ms() < *calm_at_ms);
    let (peers, all) = (fleet.sickness(&group), fleet.sickness(""));
    let stormy = |sickness: &Option<Sickness>| match sickness {
        Some(sickness) => fleet.stormy(sickness, &proposal.config),
        // Nobody has said how many there are: no share can be told.
        None => true,
    };
    let retry = calm_at_ms.map_or(Retry::Later, Retry::At);
    answer(
        unless(stormy(&peers) || stormy(&all) || calm_at_ms.is_some(), retry),
        [
            ("sick_peers_now", json!(peers.as_ref().map(|p| p.sick))),
            ("population_now", json!(peers.as_ref().map(|p| p.population))),
            ("sick_fleet_now", json!(all.as_ref().map(|a| a.sick))),
            ("share_max", json!(proposal.config.fleet_sick_share)),
            ("sick_max", json!(proposal.config.fleet_sick_max)),
            ("calm_at_ms", json!(calm_at_ms)),
        ],
    )
}

fn startup_grace(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let ends_ms = fleet.state.clock.first_activity_ms.map_or(i64::MAX, |first_ms| {
        first_ms.saturating_add(ms(proposal.config.startup_grace))
    });
    answer(
        unless(fleet.now_ms() < ends_ms, Retry::At(ends_ms)),
        [("ends_ms", json!(ends_ms)), ("now_ms", json!(fleet.now_ms()))],
    )
}

fn maintenance(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let (now_ms, name) = (fleet.now_ms(), &proposal.episode.target.name);
    let until_ms = fleet.state.controls.values().filter_map(|control| match control {
        Control::Maintenance { service, from, to, .. } if glob(service, name) && (*from..*to).contains(&now_ms) => {
            Some(*to)
        }
        _ => None,
    });
    let until_ms = until_ms.max();
    answer(
        until_ms.map_or(Ok(()), |until_ms| Err(Retry::At(until_ms))),
        [("until_ms", json!(until_ms))],
    )
}

/// Failures with one cause show within seconds of each other: a first one waits for the others. Silence alone may be the way that
/// telemetry takes: it waits for a second signal, or longer.
fn hold_down(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let config = proposal.config.as_ref();
    let calls = !proposal.policy.latched && fleet.callees(&proposal.episode.target.name).next().is_some();
    let own = crate::state::group(&proposal.key.pipeline, &proposal.policy.detector);
    let name = &proposal.episode.target.name;
    let seconded = fleet
        .index
        .sick
        .iter()
        .any(|(group, sick)| *group != own && sick.values().any(|sick| sick.name == *name));
    let settle = match (proposal.policy.latched, seconded, calls) {
        (true, false, _) => config.settle.max(config.settle_silent),
        (false, _, true) => config.settle.max(config.settle_callers),
        _ => config.settle,
    };
    let after_ms = |settle| proposal.case.opened_ms.saturating_add(ms(settle));
    let (soonest_ms, ends_ms) = (after_ms(config.settle), after_ms(settle));
    // A second signal may come at any time.
    let retry = match (proposal.policy.latched, fleet.now_ms() < soonest_ms) {
        (true, true) => Retry::At(soonest_ms),
        (true, false) => Retry::At(ends_ms.min(fleet.now_ms().saturating_add(ms(config.reconsider).max(1)))),
        (false, _) => Retry::At(ends_ms),
    };
    answer(
        unless(fleet.now_ms() < ends_ms, retry),
        [
            ("ends_ms", json!(ends_ms)),
            ("settle_now", json!(settle.as_secs_f64())),
            ("second_signal_now", json!(seconded)),
        ],
    )
}

/// A symptom of another service's failure is healed there.
fn dependency(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let symptom = !proposal.policy.latched && proposal.impact > Impact::None;
    let root = fleet.explained_by(&proposal.episode.target.name).filter(|_| symptom);
    answer(unless(root.is_some(), Retry::Later), [("root_now", json!(root))])
}

/// Overloaded is not dead: who serves as well as it can is not stopped.
fn overload(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let config = proposal.config.as_ref();
    let takes = config.overload_refuses.iter().any(|kind| kind == proposal.kind);
    let key = proposal.episode.target.key();
    let silent = fleet.index.sick_targets.get(&key).is_some_and(|sick| sick.own > 0);
    let saturated = fleet.index.sick.iter().find(|(group, sick)| {
        let named = config.overload_detectors.iter().any(|pattern| glob(pattern, group));
        named && sick.values().any(|sick| sick.name == proposal.episode.target.name)
    });
    let saturated = saturated.map(|(group, _)| group);
    answer(
        unless(takes && !silent && saturated.is_some(), Retry::Later),
        [("saturated_now", json!(saturated)), ("silent_now", json!(silent))],
    )
}

fn episode(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let firing = fleet.firing(proposal.policy, proposal.episode);
    answer(
        unless(!firing, Retry::Later),
        [
            ("score_now", json!(proposal.episode.latest.score)),
            ("windows_meeting_now", json!(proposal.episode.meeting.len())),
            ("for_k", json!(proposal.policy.for_k)),
            ("for_n", json!(proposal.policy.for_n)),
        ],
    )
}

fn flapping(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let config = proposal.config.as_ref();
    let flips = proposal.target.flips.get(&proposal.key.name()).into_iter().flatten();
    let within_ms = ms(config.flips_within);
    let from_ms = fleet.now_ms().saturating_sub(within_ms);
    let counted: Vec<i64> = flips.copied().filter(|at_ms| *at_ms > from_ms).collect();
    let max = config.flips_max as usize;
    let refused = proposal.impact > Impact::None && max > 0 && counted.len() >= max;
    let calm_at_ms = refused.then(|| counted[counted.len() - max].saturating_add(within_ms));
    answer(
        calm_at_ms.map_or(Ok(()), |at_ms| Err(Retry::At(at_ms))),
        [("flips_now", json!(counted.len())), ("flips_max", json!(max))],
    )
}

fn in_flight(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let own = proposal.case.pending.as_ref().map(|pending| pending.action.action_id);
    let now_ms = fleet.now_ms();
    // In shadow nothing is done that could get in another's way.
    let live = proposal.mode > Mode::Shadow;
    let other = proposal
        .target
        .lock
        .as_ref()
        .filter(|_| live)
        .filter(|lock| Some(lock.action_id) != own && lock.until_ms.is_none_or(|until_ms| now_ms < until_ms));
    let retry = other.and_then(|lock| lock.until_ms).map_or(Retry::Later, Retry::At);
    answer(
        unless(other.is_some(), retry),
        [("action_in_flight", json!(other.map(|lock| lock.action_id)))],
    )
}

fn cooldown(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let last = match proposal.mode {
        Mode::Shadow => &proposal.target.last_shadow,
        _ => &proposal.target.last,
    };
    // The next step of a ladder tries something else on the same incident: waiting for its verdict was wait enough.
    let counts = |last: &&LastAction| last.incident != proposal.case.id || last.kind == proposal.kind;
    let last = last.as_ref().filter(counts);
    let cooldown_ms = ms(proposal.policy.cooldown);
    let ends_ms = last.map(|last| last.at_ms.saturating_add(cooldown_ms));
    let refused = ends_ms.filter(|ends_ms| fleet.now_ms() < *ends_ms);
    answer(
        refused.map_or(Ok(()), |ends_ms| Err(Retry::At(ends_ms))),
        [
            ("last_action", json!(last.map(|last| &last.kind))),
            ("ends_ms", json!(ends_ms)),
            ("cooldown_s", json!(cooldown_ms / 1000)),
        ],
    )
}

fn limit(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let (now_ms, shadow) = (fleet.now_ms(), proposal.mode == Mode::Shadow);
    let config = proposal.config.as_ref();
    let policy = fleet.state.budgets.get(&proposal.policy.id());
    let used_up = policy
        .and_then(|history| history.exhausted(&proposal.policy.limits, now_ms, shadow))
        .or_else(|| zero(&proposal.policy.limits))
        .map(|used| ("policy", used))
        .or_else(|| {
            let used = proposal.target.acted.exhausted(&config.limits_service, now_ms, shadow);
            Some(("service", used.or_else(|| zero(&config.limits_service))?))
        })
        .or_else(|| {
            let used = fleet.state.clock.acted.exhausted(&config.limits_fleet, now_ms, shadow);
            Some(("fleet", used?))
        });
    let Some((scope, used)) = used_up else {
        return answer(Ok(()), []);
    };
    answer(
        Err(Retry::At(used.free_ms)),
        [
            ("scope", json!(scope)),
            ("actions", json!(used.limit.actions)),
            ("per_s", json!(used.limit.per.as_secs())),
            ("used_now", json!(used.used)),
            ("free_ms", json!(used.free_ms)),
        ],
    )
}

/// A limit of no action at all holds before anything was ever done.
fn zero(limits: &[crate::Limit]) -> Option<crate::state::Exhausted> {
    crate::state::History::default().exhausted(limits, 0, false)
}

fn concurrency(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let group = crate::state::group(&proposal.key.pipeline, &proposal.policy.detector);
    let population = fleet.population(&group).unwrap_or(0);
    let share = (population as f64 * proposal.config.concurrency_share).floor() as u64;
    let max = share.max(u64::from(proposal.config.concurrency_min));
    let own = u64::from(proposal.case.pending.is_some());
    let in_flight = fleet.index.actions.len() as u64 - own;
    let refused = proposal.mode > Mode::Shadow && in_flight >= max;
    answer(
        unless(refused, Retry::Later),
        [("in_flight_now", json!(in_flight)), ("in_flight_max_now", json!(max))],
    )
}

fn breaker(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let failures = fleet.failures(proposal.target, &proposal.config);
    let max = proposal.config.breaker_failures;
    let refused = proposal.impact > Impact::None && max > 0 && failures >= max;
    answer(
        unless(refused, Retry::Never),
        [("failures_now", json!(failures)), ("failures_max", json!(max))],
    )
}

/// On a forecast alone nothing is done that could not be undone.
fn prediction(_: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let harmless = proposal.impact <= Impact::Low && proposal.class.reversible;
    answer(
        unless(proposal.policy.predictive && !harmless, Retry::Control),
        [
            ("predictive", json!(proposal.policy.predictive)),
            ("impact", json!(proposal.impact)),
            ("reversible", json!(proposal.class.reversible)),
        ],
    )
}

fn precision(fleet: &Fleet, proposal: &Proposal<'_>) -> Answer {
    let high = proposal.impact == Impact::High;
    let measured = fleet.measured_precision(proposal).filter(|_| high);
    let low = measured.is_some_and(|measured| measured < proposal.config.precision_min);
    answer(
        unless(low && proposal.mode == Mode::Auto, Retry::Later),
        [
            ("impact", json!(proposal.impact)),
            ("precision_now", json!(measured)),
            ("precision_min", json!(proposal.config.precision_min)),
        ],
    )
}

impl Fleet {
    /// Failed verdicts in a row that still count.
    pub(crate) fn failures(&self, target: &TargetState, config: &FleetConfig) -> u32 {
        let open = target.failures >= config.breaker_failures;
        let forgotten = target.failed_ms.saturating_add(ms(config.breaker_forget)) <= self.now_ms();
        if forgotten && !open { 0 } else { target.failures }
    }
}
