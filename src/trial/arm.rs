//! The competitors: a static rule, the product's fleet under several policies, and an oracle. All see the same worlds through the
//! same detectors and pay the same delays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use protocol::{
    CloudEvent, Target, cloudevent, id,
    message::{
        Action, Anomaly, Control, Decision, DecisionKind, Executor, Mode, Outcome, OutcomeStatus, TimeProgress, Verdict,
    },
};
use remediation::{
    ActionClass, Choice, Effect, Fleet, FleetConfig, Impact, Input, Message, Policy,
    choose::{Example, Value},
};

use crate::{
    Error, Random,
    catalogue::Catalogue,
    watch::{PIPELINE, SICK, SILENT, Watch},
    world::{STEP_MS, World},
};

/// A run ends so long after its fault began: by then a person has looked.
pub const HORIZON_MS: i64 = 1_800_000;
/// A healthy run lasts so long.
const HEALTHY_MS: i64 = 2_400_000;
/// After the end of a fault a run goes on for so long, for actions that come too late.
const AFTERMATH_MS: i64 = 420_000;
/// From one run to the next in the fleet's time.
const BETWEEN_MS: i64 = 26 * 3_600_000;
const STATIC_MS: i64 = 30_000;
const STATIC_PAUSE_MS: i64 = 600_000;
const TENANT: &str = "trial";

/// One action that was carried out.
#[derive(Clone, Debug)]
pub struct Done {
    pub kind: String,
    /// Something was wrong at that service, and not about to end by itself.
    pub needed: bool,
    /// It can end the fault.
    pub cures: bool,
}

/// What became of one run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub fault: Option<String>,
    pub ambiguous: bool,
    pub curable: bool,
    pub done: Vec<Done>,
    pub recovered: u32,
    /// From fault to recovery, where it came before the horizon.
    pub healed_ms: Option<i64>,
    pub escalated: bool,
    /// Distinct proposals (incident, action): unsafe ones, and how many of them were not carried out.
    pub unsafe_proposed: u32,
    pub unsafe_blocked: u32,
    /// Distinct proposals that a content gate kept from ever being carried out, and how many of them were unsafe.
    pub refused: u32,
    pub refused_unsafe: u32,
    pub duplicates: u32,
    pub kills: u32,
    pub replayed: u32,
    pub replayed_same: u32,
}

impl Run {
    /// Whether the first thing that was done was right: a cure where there is one, nothing where there is none.
    pub fn right(&self) -> bool {
        match self.done.first() {
            Some(done) => done.cures,
            None => !self.curable,
        }
    }
}

/// Who decides.
pub trait Arm {
    /// One step: what became known, and what is due to be done now, as (action id, kind, service).
    fn step(&mut self, seen: &Seen<'_>, done: &mut Vec<(String, String, String)>) -> Result<(), Error>;
    /// A run begins, with a healthy world.
    fn begin(&mut self, world: &World<'_>) -> Result<(), Error>;
    /// A run ends; what the arm has to report of it.
    fn end(&mut self, run: &mut Run) -> Result<(), Error>;
}

/// What an arm is shown of a step.
pub struct Seen<'a> {
    pub elapsed_ms: i64,
    pub flows: bool,
    pub anomalies: &'a [(usize, Anomaly)],
    pub names: &'a [&'a str],
    pub takes: &'a dyn Fn(&str) -> i64,
    /// For the marks and the oracle: whether an action of that kind at that service is unsafe; the fault's right action.
    pub judge: &'a dyn Fn(&str, &str) -> bool,
    pub right: Option<(&'a str, &'a str)>,
}

/// Lets an arm live through a world.
pub fn live(world: &mut World<'_>, watch: &mut Watch, arm: &mut dyn Arm) -> Result<Run, Error> {
    watch.reset();
    arm.begin(world)?;
    let truth = world.truth();
    let mut run = Run {
        fault: truth.as_ref().map(|truth| truth.fault.name.clone()),
        ambiguous: truth.as_ref().is_some_and(|truth| truth.fault.ambiguous),
        curable: truth.as_ref().is_some_and(|truth| !truth.fault.cures.is_empty()),
        ..Run::default()
    };
    let until_ms = truth.as_ref().map_or(HEALTHY_MS, |truth| truth.from_ms + HORIZON_MS);
    let names = world.names.clone();
    while world.elapsed_ms < until_ms && !over(world) {
        let samples = world.step();
        let flows = world.telemetry_flows();
        let mut anomalies = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let said = watch.see(at, name, samples[at].as_ref(), world.elapsed_ms, flows);
            anomalies.extend(said.into_iter().map(|anomaly| (at, anomaly)));
        }
        let mut due = Vec::new();
        let judge = |kind: &str, service: &str| is_unsafe(world, kind, service);
        let right = truth
            .as_ref()
            .and_then(|truth| Some((truth.service, truth.fault.cures.first()?.as_str())));
        let seen = Seen {
            elapsed_ms: world.elapsed_ms,
            flows,
            anomalies: &anomalies,
            names: &names,
            takes: &|kind| world.takes_ms(kind),
            judge: &judge,
            right,
        };
        arm.step(&seen, &mut due)?;
        for (action_id, kind, service) in due {
            let sick = world.is_sick(&service);
            run.done.push(Done {
                needed: sick && run.curable,
                cures: sick && truth.as_ref().is_some_and(|truth| truth.fault.cures.contains(&kind)),
                kind: kind.clone(),
            });
            world.act(&action_id, &kind, &service);
        }
    }
    run.duplicates = world.effects.values().map(|count| count - 1).sum();
    if let Some(truth) = &truth {
        run.healed_ms = world.ended_ms().map(|ended_ms| ended_ms - truth.from_ms);
    }
    arm.end(&mut run)?;
    Ok(run)
}

fn over(world: &World<'_>) -> bool {
    world
        .ended_ms()
        .is_some_and(|ended_ms| world.elapsed_ms > ended_ms + AFTERMATH_MS)
}

fn is_unsafe(world: &World<'_>, kind: &str, service: &str) -> bool {
    let worsens = world
        .truth()
        .is_some_and(|truth| truth.fault.worsens.iter().any(|name| name == kind));
    let nothing_helps = world.truth().is_none_or(|truth| truth.fault.cures.is_empty());
    !world.is_sick(service) || worsens || nothing_helps
}

/// Restarts what was silent or over its threshold for 30 s, once in ten minutes.
#[derive(Default)]
pub struct StaticRule {
    since: BTreeMap<(usize, String), i64>,
    restarted: BTreeMap<usize, i64>,
    due: Vec<(i64, usize)>,
    acted: u32,
}

impl Arm for StaticRule {
    fn begin(&mut self, _: &World<'_>) -> Result<(), Error> {
        *self = Self {
            acted: self.acted,
            ..Self::default()
        };
        Ok(())
    }

    fn step(&mut self, seen: &Seen<'_>, done: &mut Vec<(String, String, String)>) -> Result<(), Error> {
        let now_ms = seen.elapsed_ms;
        for (at, anomaly) in seen.anomalies {
            let key = (*at, anomaly.detector.clone());
            match anomaly.is_anomaly {
                // An alarm of silence has been waited for already.
                true if anomaly.detector == SILENT => self.since.insert(key, now_ms - STATIC_MS),
                true => Some(*self.since.entry(key).or_insert(now_ms)),
                false => self.since.remove(&key),
            };
        }
        let ripe: BTreeSet<usize> = self
            .since
            .iter()
            .filter(|(_, since_ms)| now_ms - **since_ms >= STATIC_MS)
            .map(|((at, _), _)| *at)
            .collect();
        for at in ripe {
            if self
                .restarted
                .get(&at)
                .is_none_or(|last_ms| now_ms - last_ms >= STATIC_PAUSE_MS)
            {
                self.restarted.insert(at, now_ms);
                self.due.push((now_ms + (seen.takes)("restart"), at));
            }
        }
        let (now, later) = self.due.drain(..).partition(|(due_ms, _)| *due_ms <= now_ms);
        self.due = later;
        let now: Vec<(i64, usize)> = now;
        for (_, at) in now {
            self.acted += 1;
            done.push((
                format!("static-{}", self.acted),
                "restart".into(),
                seen.names[at].to_owned(),
            ));
        }
        Ok(())
    }

    fn end(&mut self, _: &mut Run) -> Result<(), Error> {
        Ok(())
    }
}

/// Knows the fault, and acts on it as soon as a detector has spoken and the usual wait is over.
#[derive(Default)]
pub struct Oracle {
    heard_ms: Option<i64>,
    acted: u32,
    done: bool,
}

impl Arm for Oracle {
    fn begin(&mut self, _: &World<'_>) -> Result<(), Error> {
        (self.heard_ms, self.done) = (None, false);
        Ok(())
    }

    fn step(&mut self, seen: &Seen<'_>, done: &mut Vec<(String, String, String)>) -> Result<(), Error> {
        let Some((service, kind)) = seen.right else {
            return Ok(());
        };
        let at_it = |(at, anomaly): &(usize, Anomaly)| seen.names[*at] == service && anomaly.is_anomaly;
        if self.heard_ms.is_none() && seen.anomalies.iter().any(at_it) && !(seen.judge)(kind, service) {
            self.heard_ms = Some(seen.elapsed_ms);
        }
        let wait_ms = 20_000 + (seen.takes)(kind);
        if self
            .heard_ms
            .is_some_and(|heard_ms| seen.elapsed_ms >= heard_ms + wait_ms)
            && !self.done
        {
            self.done = true;
            self.acted += 1;
            done.push((format!("oracle-{}", self.acted), kind.to_owned(), service.to_owned()));
        }
        Ok(())
    }

    fn end(&mut self, _: &mut Run) -> Result<(), Error> {
        Ok(())
    }
}

/// The product's decide stage, killed now and then.
pub struct Product {
    config: FleetConfig,
    policies: Vec<Policy>,
    fleet: Fleet,
    store: BTreeMap<Vec<u8>, Vec<u8>>,
    start_ms: i64,
    now_ms: i64,
    watermark_ms: i64,
    services: u64,
    events: u64,
    records: u64,
    kill_share: f64,
    chance: Random,
    commands: Vec<(i64, Action)>,
    decisions: Vec<(Decision, bool)>,
    recovered: u32,
    kills: u32,
    replayed: (u32, u32),
    /// What alarms last, by service and detector.
    alarms: BTreeMap<(String, String), Anomaly>,
}

/// How a fleet chooses.
#[derive(Clone, Debug)]
pub enum Way {
    /// One action after the other.
    Rules,
    /// A model's word and nothing else.
    Tree(serde_json::Value),
    /// A model's word, corrected by what is learned.
    Bandit(serde_json::Value),
    /// Neither model nor rule: to gather incidents to learn from.
    Unlearned,
}

/// A fleet that decides that way: its thresholds, and what it does about which detector.
pub fn fleet(catalogue: &Catalogue, way: &Way) -> (FleetConfig, Vec<Policy>) {
    let mut config = FleetConfig {
        tenant: TENANT.into(),
        calls: catalogue.calls.clone().into_iter().collect(),
        ..FleetConfig::default()
    };
    // A rollback goes to an explicit revision and can be taken back.
    let reversible = ActionClass {
        impact: Impact::Medium,
        reversible: true,
        undo: None,
    };
    config.actions.insert("rollback".into(), reversible);
    if let Way::Tree(_) = way {
        config.choose.prior_strength = 10_000.0;
        (config.choose.propensity_min, config.choose.propensity_max) = (0.0, 1.0);
    }
    let kinds: Vec<String> = ["restart", "scale_up", "rollback"].map(String::from).to_vec();
    let choice = match way {
        Way::Rules => Choice::Ladder(kinds),
        _ => Choice::Choose(kinds),
    };
    let policy = |detector: &str, latched: bool| Policy {
        for_k: if latched { 1 } else { 3 },
        for_n: if latched { 1 } else { 5 },
        window_step_ms: STEP_MS,
        latched,
        mode: Mode::Auto,
        ..Policy::new(PIPELINE, &format!("heal_{detector}"), detector, choice.clone())
    };
    let policies = vec![policy(SICK, false), policy(SILENT, true)];
    (config, policies)
}

impl Product {
    pub fn new(catalogue: &Catalogue, way: &Way, seed: u64, kill_share: f64) -> Result<Self, Error> {
        let (config, policies) = fleet(catalogue, way);
        let mut product = Self {
            fleet: Fleet::new(config.clone(), policies.clone()),
            config,
            policies,
            store: BTreeMap::new(),
            start_ms: 1_700_000_000_000,
            now_ms: 1_700_000_000_000,
            watermark_ms: 0,
            services: catalogue.calls.len() as u64,
            events: 0,
            records: 0,
            kill_share,
            chance: Random::derive(seed, 0x6b69_6c6c),
            commands: Vec::new(),
            decisions: Vec::new(),
            recovered: 0,
            kills: 0,
            replayed: (0, 0),
            alarms: BTreeMap::new(),
        };
        let by = || "trial".to_owned();
        product.control(&Control::Mode {
            service: "*".into(),
            action: "*".into(),
            mode: Mode::Auto,
            until: None,
            by: by(),
            reason: String::new(),
        })?;
        if let Way::Tree(model) | Way::Bandit(model) = way {
            product.control(&Control::Model {
                policy: "*".into(),
                model: model.clone(),
                by: by(),
                reason: String::new(),
            })?;
        }
        Ok(product)
    }

    fn control(&mut self, control: &Control) -> Result<(), Error> {
        let scope = control.scope();
        self.feed(Message::Control {
            scope: &scope,
            data: Some(control),
        })
    }

    /// One record, committed. A kill comes after the step and before the commit: what was said is lost, the state is read
    /// back, the record comes again.
    fn feed(&mut self, message: Message<'_>) -> Result<(), Error> {
        let input = Input {
            broker_ms: self.now_ms,
            message,
        };
        let mut effects = Vec::new();
        self.fleet.apply(input, &mut effects);
        self.records += 1;
        let telling = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Decision { .. } | Effect::Verdict { .. }));
        if (telling || self.records.is_multiple_of(4_099)) && self.chance.unit() < self.kill_share {
            self.kills += 1;
            self.fleet = Fleet::new(self.config.clone(), self.policies.clone());
            for (key, value) in &self.store {
                self.fleet.restore(key, Some(value))?;
            }
            let mut again = Vec::new();
            self.fleet.apply(input, &mut again);
            self.replayed.0 += 1;
            self.replayed.1 += u32::from(again == effects);
            effects = again;
        }
        for (key, value) in self.fleet.take_dirty() {
            match value {
                Some(value) => self.store.insert(key, value),
                None => self.store.remove(&key),
            };
        }
        for effect in effects {
            match effect {
                Effect::Action { data, .. } => self.commands.push((self.now_ms, data)),
                Effect::Cancelled { data, .. } => {
                    self.commands.retain(|(_, action)| action.action_id != data.action_id);
                }
                Effect::Decision { data, .. } => self.decisions.push((data, false)),
                Effect::Verdict { data, .. } if data.verdict == Verdict::Recovered => self.recovered += 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn event(&mut self, kind: &str, service: &str) -> CloudEvent {
        self.events += 1;
        let mint = id::derived("trial", &[&self.events.to_string()]);
        CloudEvent::new(
            mint,
            TENANT,
            "/trial",
            kind,
            &Target::service(TENANT, service).key(),
            self.now_ms,
        )
    }

    fn report(&mut self, action: &Action, status: OutcomeStatus) -> Result<(), Error> {
        let data = Outcome {
            action_id: action.action_id,
            incident_id: action.incident_id,
            attempt: action.attempt,
            executor: Executor {
                id: "trial".into(),
                version: "1".into(),
            },
            status,
            code: 200,
            retryable: false,
            at: self.now_ms,
            effect: serde_json::Map::new(),
            error: None,
            payload_sha256: String::new(),
        };
        let kind = format!("{}{}.v1", cloudevent::OUTCOME_PREFIX, status.as_str());
        let event = self.event(&kind, &action.target.target.name);
        self.feed(Message::Outcome {
            event: &event,
            data: &data,
        })
    }

    /// Commands whose time has come.
    fn carry_out(&mut self, seen: &Seen<'_>, done: &mut Vec<(String, String, String)>) -> Result<(), Error> {
        let is_due = |(at_ms, action): &(i64, Action)| self.now_ms >= at_ms + (seen.takes)(&action.action.kind);
        let (due, later): (Vec<_>, Vec<_>) = self.commands.drain(..).partition(is_due);
        self.commands = later;
        for (_, action) in due {
            let names = (action.action.kind.clone(), action.target.target.name.clone());
            done.push((action.action_id.to_string(), names.0, names.1));
            self.report(&action, OutcomeStatus::Succeeded)?;
        }
        Ok(())
    }

    /// What the first decision at a service rested on: an incident to learn from.
    pub fn example(&self, incident: &str, service: &str, label: &str) -> Option<Example> {
        let key = Target::service(TENANT, service).key();
        let at_it = |(decision, _): &&(Decision, bool)| decision.target_key == key && decision.choice.is_some();
        let mut of_last = self.decisions.iter().filter(at_it);
        // What was known when the gates had let it pass, or else at last.
        let acted = of_last
            .clone()
            .find(|(decision, _)| decision.refused_by.as_deref() != Some("hold_down"));
        let choice = acted.or(of_last.next_back())?.0.choice.as_ref()?;
        let value = |(name, value): (&String, &serde_json::Value)| {
            let value = match value {
                serde_json::Value::Number(number) => Value::Number(number.as_f64()?),
                serde_json::Value::String(text) => Value::Text(text.clone()),
                _ => return None,
            };
            Some((name.clone(), value))
        };
        Some(Example {
            incident: incident.to_owned(),
            label: label.to_owned(),
            features: choice.context.iter().filter_map(value).collect(),
        })
    }

    fn mark_proposals(&self, run: &mut Run) {
        let mut proposals: BTreeMap<(String, String), (bool, bool, bool)> = BTreeMap::new();
        for (decision, harmful) in &self.decisions {
            let kind = decision
                .action
                .as_ref()
                .map(|action| action.kind.clone())
                .unwrap_or_default();
            if kind.is_empty() || kind == "noop" || kind == "escalate" {
                continue;
            }
            let gate = decision.refused_by.as_deref().unwrap_or_default();
            let content = [
                "fleet_wide",
                "dependency",
                "overload",
                "telemetry",
                "flapping",
                "breaker",
                "episode",
            ]
            .contains(&gate);
            let entry = proposals.entry((decision.incident_id.to_string(), kind)).or_default();
            entry.0 |= *harmful;
            entry.1 |= decision.verdict == DecisionKind::Act;
            entry.2 |= content;
        }
        for (harmful, acted, content) in proposals.into_values() {
            run.unsafe_proposed += u32::from(harmful);
            run.unsafe_blocked += u32::from(harmful && !acted);
            run.refused += u32::from(content && !acted);
            run.refused_unsafe += u32::from(content && !acted && harmful);
        }
    }
}

impl Arm for Product {
    fn begin(&mut self, _: &World<'_>) -> Result<(), Error> {
        self.start_ms = self.now_ms + BETWEEN_MS;
        self.now_ms = self.start_ms;
        self.watermark_ms = self.now_ms;
        // Between runs a person has mended what was left: what still alarmed says that it is well.
        for ((service, _), mut anomaly) in std::mem::take(&mut self.alarms) {
            (anomaly.is_anomaly, anomaly.score) = (false, 0.0);
            anomaly.clears = std::mem::take(&mut anomaly.meets);
            (anomaly.window_start, anomaly.window_end) = (self.now_ms - 2 * STEP_MS, self.now_ms - STEP_MS);
            let event = self.event(cloudevent::ANOMALY, &service);
            self.feed(Message::Anomaly {
                event: &event,
                data: &anomaly,
            })?;
        }
        let at = self.now_ms;
        self.control(&Control::Reset {
            service: "*".into(),
            by: "trial".into(),
            at,
            reason: String::new(),
        })?;
        self.commands.clear();
        self.decisions.clear();
        (self.recovered, self.kills, self.replayed) = (0, 0, (0, 0));
        Ok(())
    }

    fn step(&mut self, seen: &Seen<'_>, done: &mut Vec<(String, String, String)>) -> Result<(), Error> {
        self.now_ms = self.start_ms + seen.elapsed_ms;
        if seen.flows {
            self.watermark_ms = self.now_ms - 2_000;
        }
        let before = self.decisions.len();
        let groups = [SICK, SILENT].map(|detector| (format!("{PIPELINE}.{detector}"), self.services));
        let progress = TimeProgress {
            watermark_ms: Some(self.watermark_ms),
            clock: self.now_ms,
            partition: 0,
            population: groups.into(),
            version: 0,
        };
        self.feed(Message::Progress(&progress))?;
        for (at, anomaly) in seen.anomalies {
            let mut anomaly = anomaly.clone();
            anomaly.window_start += self.start_ms;
            anomaly.window_end += self.start_ms;
            let alarm = (seen.names[*at].to_owned(), anomaly.detector.clone());
            match anomaly.is_anomaly {
                true => self.alarms.insert(alarm, anomaly.clone()),
                false => self.alarms.remove(&alarm),
            };
            let event = self.event(cloudevent::ANOMALY, seen.names[*at]);
            self.feed(Message::Anomaly {
                event: &event,
                data: &anomaly,
            })?;
        }
        self.carry_out(seen, done)?;
        for (decision, harmful) in &mut self.decisions[before..] {
            let kind = decision.action.as_ref().map_or("", |action| action.kind.as_str());
            let name = Target::from_key(&decision.target_key)
                .map(|target| target.name)
                .unwrap_or_default();
            *harmful = (seen.judge)(kind, &name);
        }
        Ok(())
    }

    fn end(&mut self, run: &mut Run) -> Result<(), Error> {
        run.recovered = self.recovered;
        run.kills = self.kills;
        (run.replayed, run.replayed_same) = self.replayed;
        let given_up = |(decision, _): &(Decision, bool)| {
            let gate = decision.refused_by.as_deref().unwrap_or_default();
            ["choice", "attempts", "breaker"].contains(&gate)
        };
        run.escalated = self.decisions.iter().any(given_up);
        self.mark_proposals(run);
        Ok(())
    }
}

/// Commands per minute while the whole fleet alarms as fast as it can: the most in any minute, and the budget.
pub fn storm(catalogue: &Catalogue, per_second: usize, seconds: i64) -> Result<(usize, usize), Error> {
    let mut product = Product::new(catalogue, &Way::Rules, 1, 0.0)?;
    // The storm is of anomalies, not of failures: nothing but the budget stands in its way.
    product.config.fleet_sick_share = 1.0;
    product.config.fleet_sick_max = u32::MAX;
    product.config.startup_grace = Duration::ZERO;
    product.fleet = Fleet::new(product.config.clone(), product.policies.clone());
    for (key, value) in &product.store {
        product.fleet.restore(key, Some(value))?;
    }
    let budget = product
        .config
        .limits_fleet
        .iter()
        .map(|limit| limit.actions as usize)
        .min()
        .unwrap_or(usize::MAX);
    let mut commands: Vec<i64> = Vec::new();
    for second in 0..seconds {
        product.now_ms += 1_000;
        let now_ms = product.now_ms;
        let progress = TimeProgress {
            watermark_ms: Some(now_ms - 2_000),
            clock: now_ms,
            partition: 0,
            population: [(format!("{PIPELINE}.{SICK}"), per_second as u64 * 2)].into(),
            version: 0,
        };
        product.feed(Message::Progress(&progress))?;
        for at in 0..per_second {
            let service = format!("service-{}", at % 2_000);
            let event = product.event(cloudevent::ANOMALY, &service);
            let anomaly = Anomaly {
                target: [("service_name".to_owned(), service.as_str().into())].into(),
                pipeline: PIPELINE.into(),
                detector: SICK.into(),
                window_start: now_ms - 7_000 - second % 2,
                window_end: now_ms - 2_000,
                score: 3.0,
                is_anomaly: true,
                features: BTreeMap::new(),
                contributions: BTreeMap::new(),
                columns: BTreeMap::new(),
                meets: vec![format!("heal_{SICK}")],
                clears: Vec::new(),
                telemetry_healthy: true,
            };
            product.feed(Message::Anomaly {
                event: &event,
                data: &anomaly,
            })?;
        }
        commands.extend(product.commands.drain(..).map(|_| now_ms));
        product.decisions.clear();
    }
    let in_minute = |from: &i64| {
        commands
            .iter()
            .filter(|at| (*from..*from + 60_000).contains(*at))
            .count()
    };
    Ok((commands.iter().map(in_minute).max().unwrap_or(0), budget))
}
