//! The product as it runs, killed again and again: the decide stage in its loop and an executor in its, over the broker in memory,
//! with signed commands, a real ledger file and a world that counts what is done to it.
//!
//! Both die at points of their own code drawn from the seed, most often while an incident is open, and are started again from what
//! they had made durable: the topics, and the ledger as it lay on the disk at that moment. What is counted is counted by the
//! services. Half of them keep the id of the action that was last carried out on them, as Kubernetes' annotations do; the others keep
//! nothing, and all that stands between them and a second effect is the ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Context;
use executor::{
    adapter::{Adapter, Before, Effect, Failure, Reconciled},
    admission::{Limits, Refusal},
    allow::{AdapterKind, Allow, Unlisted},
    budget::{Bounds, BreakerConfig},
    command::Command,
    crash::{Crash, CrashPoint},
    ledger::Ledger,
    report::Identity,
    run::{BrokerControl, BrokerReporter, Runner, Settings, Stop},
    trust::Trust as CommandTrust,
    watch::Watch as ExecutorWatch,
    worker::{Cancellations, Worker},
};
use kafka::{
    Broker, Clock, Death, LoopConfig, Memory, Point, StageLoop, TopicConfig, Turn, VirtualClock, memory::Stored,
};
use protocol::{
    CloudEvent, Output, Target, TopicPartition, Topics, cloudevent, id,
    message::{Control, Executor, Mode, Outcome, TimeProgress},
    signature::{Signer, TrustedKey},
};
use remediation::{Decide, FleetConfig, Policy, Trust};
use trial::{
    Random,
    arm::{Arm, Run, Seen, Way, fleet},
    catalogue::Catalogue,
    watch::{PIPELINE, SICK, SILENT},
    world::World,
};
use uuid::Uuid;

const BEGAN_MS: i64 = 1_790_000_000_000;
/// Loops turn so often; the world goes in steps of five seconds.
const TURN_MS: i64 = 1_000;
const TURNS: i64 = trial::world::STEP_MS / TURN_MS;
const ACTIONS_PARTITIONS: i32 = 2;
const SEED: [u8; 32] = [7; 32];
const EXECUTOR: &str = "trial";
const EXECUTOR_SEED: [u8; 32] = [8; 32];

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kills {
    pub processor: u32,
    pub executor: u32,
    /// Commands on the topic, by action id.
    pub commands: u32,
    /// What was done to services, and how much of it more than once for one action id.
    pub effects: u32,
    pub duplicate_effects: u32,
    /// Action ids that were published more than once, or ended with two different last words.
    pub contradictions: u32,
    /// What was done and never reported.
    pub unreported: u32,
}

impl Kills {
    pub fn all(&self) -> u32 {
        self.processor + self.executor
    }
}

/// An arm that is killed. One broker, one ledger and one fleet per run.
pub struct Killed {
    config: FleetConfig,
    policies: Vec<Policy>,
    random: Random,
    life: Option<Life>,
    /// A ledger that is lost with its executor: for a test, to show that the count notices.
    pub forgetful: bool,
    pub total: Kills,
}

/// One run.
struct Life {
    clock: Arc<VirtualClock>,
    broker: Memory,
    topics: Topics,
    directory: tempfile::TempDir,
    decide: StageLoop<'static>,
    executor: Option<Runner>,
    services: Arc<Services>,
    instances: u32,
    alarms: BTreeSet<(usize, String)>,
    watermark_ms: i64,
    events: u64,
    kills: Kills,
}

/// What services know of what is done to them.
#[derive(Default)]
struct Services {
    /// How often each action was carried out.
    acted: Mutex<BTreeMap<Uuid, u32>>,
    /// Since the last step, as (action id, kind, service).
    due: Mutex<Vec<(String, String, String)>>,
}

impl Services {
    fn acted(&self) -> MutexGuard<'_, BTreeMap<Uuid, u32>> {
        self.acted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn due(&self) -> MutexGuard<'_, Vec<(String, String, String)>> {
        self.due.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

struct ServicesAdapter(Arc<Services>);

impl Adapter for ServicesAdapter {
    fn knows(&self, _command: &Command) -> Result<(), Refusal> {
        Ok(())
    }

    fn reconcile(&self, command: &Command, before: Option<&Before>) -> Reconciled {
        let keeps_ids = command.service().len().is_multiple_of(2);
        match (keeps_ids, before) {
            (true, _) if self.0.acted().contains_key(&command.id()) => Reconciled::Done(Effect::new()),
            (true, _) | (false, None) => Reconciled::NotDone,
            (false, Some(_)) => Reconciled::Unknown("the service keeps no ids of actions".into()),
        }
    }

    fn act(&self, command: &Command, _before: &Before) -> Result<Effect, Failure> {
        *self.0.acted().entry(command.id()).or_default() += 1;
        let names = (
            command.id().to_string(),
            command.kind().to_owned(),
            command.service().to_owned(),
        );
        self.0.due().push(names);
        Ok(Effect::new())
    }
}

impl Killed {
    pub fn new(catalogue: &Catalogue, seed: u64) -> Self {
        let (config, policies) = fleet(catalogue, &Way::Rules);
        Self {
            config,
            policies,
            random: Random::derive(seed, 0x6b69_6c6c),
            life: None,
            forgetful: false,
            total: Kills::default(),
        }
    }

    fn live(&mut self) -> anyhow::Result<Life> {
        let clock = Arc::new(VirtualClock::new(BEGAN_MS));
        let broker = Memory::new(clock.clone());
        let topics = Topics::new("homeostat.").with_tenant(self.config.tenant.clone());
        let specs: Vec<TopicConfig> = topics
            .all()
            .iter()
            .map(|spec| TopicConfig::from_spec(spec, 1, ACTIONS_PARTITIONS))
            .collect();
        broker.ensure_topics(&specs)?;
        let decide = self.decide(&broker, &clock, &topics, 0, false)?;
        let mut life = Life {
            clock,
            broker,
            topics,
            directory: tempfile::tempdir().context("a directory for the ledger")?,
            decide,
            executor: None,
            services: Arc::default(),
            instances: 0,
            alarms: BTreeSet::new(),
            watermark_ms: BEGAN_MS,
            events: 0,
            kills: Kills::default(),
        };
        let auto = Control::Mode {
            service: "*".into(),
            action: "*".into(),
            mode: Mode::Auto,
            until: None,
            by: "trial".into(),
            reason: String::new(),
        };
        life.publish(cloudevent::CONTROL, &auto.scope(), life.topics.control(), &auto)?;
        Ok(life)
    }

    /// A decide stage that will die, soon when it `matters`.
    fn decide(
        &mut self,
        broker: &Memory,
        clock: &Arc<VirtualClock>,
        topics: &Topics,
        instance: u32,
        matters: bool,
    ) -> anyhow::Result<StageLoop<'static>> {
        let (policies, config) = (self.policies.clone(), self.config.clone());
        let signer = Arc::new(Signer::from_seed(&SEED));
        let mut trust = Trust::default();
        let executor = Signer::from_seed(&EXECUTOR_SEED).public_pem();
        trust.add_executor(EXECUTOR.into(), TrustedKey::from_pem(&executor)?);
        let stage = Decide::new(policies, topics.clone(), config, 1, Some(signer), trust);
        let mut config = LoopConfig::new("decide");
        config.instance = Some(instance.to_string());
        config.clock = clock.clone();
        let nth = 1 + self.random.below(if matters { 3 } else { 12 });
        config.crash = Some(kafka::CrashPoint {
            stage: "decide".into(),
            point: Point::ALL[self.random.below(Point::ALL.len())],
            nth: nth as u32,
            death: Death::Return,
        });
        Ok(StageLoop::new(Arc::new(broker.clone()), Box::new(stage), config, &())?)
    }

    fn pass(&mut self, life: &mut Life, seen: &Seen<'_>) -> anyhow::Result<()> {
        let calm = life.alarms.is_empty();
        life.hear(seen)?;
        if calm && !life.alarms.is_empty() {
            self.replace_decide(life)?;
        }
        for turn in 0..TURNS {
            let at_ms = BEGAN_MS + seen.elapsed_ms - (TURNS - 1 - turn) * TURN_MS;
            life.clock.advance(at_ms - life.clock.now_ms());
            self.turn_decide(life)?;
            self.turn_executor(life)?;
        }
        Ok(())
    }

    fn turn_decide(&mut self, life: &mut Life) -> anyhow::Result<()> {
        // Restoring takes a few turns; who cannot reach its group waits for the next second.
        for _ in 0..20 {
            match life.decide.turn(Duration::ZERO) {
                Ok(Turn::Busy) => {}
                Ok(Turn::Idle) => break,
                Err(kafka::Error::Crashed(_)) => {
                    self.replace_decide(life)?;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// One dies where it is, another takes its place.
    fn replace_decide(&mut self, life: &mut Life) -> anyhow::Result<()> {
        life.kills.processor += 1;
        life.instances += 1;
        let matters = !life.alarms.is_empty();
        life.decide = self.decide(&life.broker, &life.clock, &life.topics, life.instances, matters)?;
        Ok(())
    }

    fn turn_executor(&mut self, life: &mut Life) -> anyhow::Result<()> {
        let mut executor = match life.executor.take() {
            Some(executor) => executor,
            None => life.executor(self.random.below(CrashPoint::ALL.len() + 2))?,
        };
        let stop = Stop::default();
        for _ in 0..4 {
            let turned = executor.turn(&stop).and_then(|()| executor.settle());
            match turned {
                Ok(settled) => anyhow::ensure!(settled, "an action did not end"),
                Err(executor::Error::Crashed) => {
                    life.kills.executor += 1;
                    return life.bury(executor, self.forgetful);
                }
                Err(error) => return Err(error.into()),
            }
        }
        life.executor = Some(executor);
        Ok(())
    }
}

impl Life {
    fn ledger(&self) -> PathBuf {
        self.directory.path().join("ledger.redb")
    }

    /// An executor that dies at that crash point, or at none.
    fn executor(&self, crash_point: usize) -> anyhow::Result<Runner> {
        let key = TrustedKey::from_pem(&Signer::from_seed(&SEED).public_pem())?;
        let settings = Settings {
            topics: self.topics.clone(),
            actions_topic: self.topics.actions(),
            group: "executors".into(),
            client_id: "executor".into(),
            // One thread, so that a seed is one history.
            threads: 1,
            in_flight_max: 64,
            drain_timeout: Duration::from_secs(60),
            age_ms_max: 600_000,
            retention_ms: 9 * 86_400_000,
            trust: CommandTrust::new(vec![key], true),
        };
        let broker: Arc<dyn Broker> = Arc::new(self.broker.clone());
        let stop = Stop::default();
        let control = BrokerControl::new(Arc::clone(&broker), &settings, Duration::from_secs(60), stop.clone())?;
        let reporter = BrokerReporter::new(&*broker, &settings, stop)?;
        let adapter: Box<dyn Adapter> = Box::new(ServicesAdapter(Arc::clone(&self.services)));
        let clock = Arc::clone(&self.clock);
        let worker = Worker {
            identity: Identity {
                executor: Executor {
                    id: EXECUTOR.into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                },
                tenant: self.topics.tenant().to_owned(),
                topics: self.topics.clone(),
                signer: Some(Arc::new(Signer::from_seed(&EXECUTOR_SEED))),
            },
            limits: Limits {
                skew_margin_ms: 1_000,
                age_ms_max: 600_000,
            },
            bounds: Bounds {
                budget: Vec::new(),
                breaker: BreakerConfig {
                    failures_max: u32::MAX,
                    open_ms: 1,
                },
            },
            allow: ["restart", "scale_up", "rollback"].map(allowed).into(),
            unlisted: Unlisted::Reject,
            adapters: [((AdapterKind::Log, None), adapter)].into(),
            ledger: Ledger::open(&self.ledger(), Uuid::nil())?,
            control: Box::new(control),
            cancelled: Cancellations::default(),
            reporter: Box::new(reporter),
            watch: ExecutorWatch::none(),
            crash: CrashPoint::ALL
                .get(crash_point)
                .map_or_else(Crash::default, |point| Crash::simulated(*point)),
            now_ms: Box::new(move || clock.now_ms()),
        };
        Ok(Runner::new(broker, Arc::new(worker), settings)?)
    }

    /// What a killed process leaves on the disk is what the next one finds: the file as it is now, not as it would be closed.
    fn bury(&self, executor: Runner, forgetful: bool) -> anyhow::Result<()> {
        let (left, found) = (self.ledger(), self.directory.path().join("left.redb"));
        fs::copy(&left, &found).context("the ledger of a killed executor")?;
        drop(executor);
        fs::rename(&found, &left).context("the ledger of a killed executor")?;
        if forgetful {
            fs::remove_file(&left)?;
        }
        Ok(())
    }

    /// Puts what detect would have said on its topic.
    fn hear(&mut self, seen: &Seen<'_>) -> anyhow::Result<()> {
        let now_ms = BEGAN_MS + seen.elapsed_ms;
        if seen.flows {
            self.watermark_ms = now_ms - 2_000;
        }
        let groups = [SICK, SILENT].map(|detector| (format!("{PIPELINE}.{detector}"), seen.names.len() as u64));
        let progress = TimeProgress {
            watermark_ms: Some(self.watermark_ms),
            clock: now_ms - (TURNS - 1) * TURN_MS,
            partition: 0,
            version: 0,
            population: groups.into(),
        };
        let topic = self.topics.anomalies();
        self.publish(cloudevent::PROGRESS, "progress", topic.clone(), &progress)?;
        for (at, anomaly) in seen.anomalies {
            let mut anomaly = anomaly.clone();
            anomaly.window_start += BEGAN_MS;
            anomaly.window_end += BEGAN_MS;
            let alarm = (*at, anomaly.detector.clone());
            match anomaly.is_anomaly {
                true => self.alarms.insert(alarm),
                false => self.alarms.remove(&alarm),
            };
            let key = Target::service(self.topics.tenant(), seen.names[*at]).key();
            self.publish(cloudevent::ANOMALY, &key, topic.clone(), &anomaly)?;
        }
        Ok(())
    }

    fn publish(&mut self, kind: &str, key: &str, topic: String, data: &impl serde::Serialize) -> anyhow::Result<()> {
        self.events += 1;
        let mint = id::derived("trial", &[&self.events.to_string()]);
        let event = CloudEvent::new(mint, self.topics.tenant(), "/trial", kind, key, self.clock.now_ms());
        let Output {
            topic,
            key,
            value,
            headers,
            ..
        } = event.output(topic, data);
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let partition = TopicPartition::new(topic, 0);
        self.broker.append(
            &partition,
            self.clock.now_ms(),
            key.as_deref(),
            value.as_deref(),
            &headers,
        )?;
        Ok(())
    }

    /// What the run comes to, by the services and the topics.
    fn count(&mut self) {
        let acted = self.services.acted();
        self.kills.effects = acted.values().sum();
        self.kills.duplicate_effects = acted.values().map(|times| times - 1).sum();
        let mut requested = BTreeMap::<String, u32>::new();
        for record in self.broker.read_committed(&self.topics.actions()) {
            if header(&record, "ce_type") == Some(cloudevent::ACTION_REQUESTED) {
                *requested
                    .entry(header(&record, "ce_id").unwrap_or_default().to_owned())
                    .or_default() += 1;
            }
        }
        let mut last_words = BTreeMap::<Uuid, BTreeSet<(&str, u16)>>::new();
        for record in self.broker.read_committed(&self.topics.outcomes()) {
            let outcome = record.value.as_deref().map(serde_json::from_slice::<Outcome>);
            if let Some(Ok(outcome)) = outcome
                && outcome.status.terminal()
            {
                let words = last_words.entry(outcome.action_id).or_default();
                words.insert((outcome.status.as_str(), outcome.code));
            }
        }
        let twice = requested.values().filter(|times| **times > 1).count();
        let torn = last_words.values().filter(|words| words.len() > 1).count();
        self.kills.commands = requested.len() as u32;
        self.kills.contradictions = (twice + torn) as u32;
        self.kills.unreported = acted.keys().filter(|action| !last_words.contains_key(action)).count() as u32;
    }
}

/// Under whichever name, for there is one adapter.
fn allowed(action: &str) -> Allow {
    Allow {
        action: action.into(),
        target: "*".into(),
        adapter: AdapterKind::Log,
        endpoint: None,
        params: BTreeMap::new(),
    }
}

fn header<'r>(record: &'r Stored, name: &str) -> Option<&'r str> {
    let found = record.headers.iter().find(|(header, _)| header == name)?;
    std::str::from_utf8(&found.1).ok()
}

/// What goes wrong with the machinery itself ends the bench; it is nothing that a run is judged by.
fn broken(error: anyhow::Error) -> trial::Error {
    trial::Error::Arm(format!("{error:#}"))
}

impl Arm for Killed {
    fn begin(&mut self, _: &World<'_>) -> Result<(), trial::Error> {
        self.life = Some(self.live().map_err(broken)?);
        Ok(())
    }

    fn step(&mut self, seen: &Seen<'_>, done: &mut Vec<(String, String, String)>) -> Result<(), trial::Error> {
        let mut life = self.life.take().expect("a run has begun");
        self.pass(&mut life, seen).map_err(broken)?;
        done.append(&mut life.services.due());
        self.life = Some(life);
        Ok(())
    }

    fn end(&mut self, run: &mut Run) -> Result<(), trial::Error> {
        let mut life = self.life.take().expect("a run has begun");
        // What was done at last is still to be reported.
        for _ in 0..60 {
            life.clock.advance(TURN_MS);
            self.turn_decide(&mut life).map_err(broken)?;
            self.turn_executor(&mut life).map_err(broken)?;
        }
        life.count();
        run.kills = life.kills.all();
        let (total, kills) = (&mut self.total, life.kills);
        total.processor += kills.processor;
        total.executor += kills.executor;
        total.commands += kills.commands;
        total.effects += kills.effects;
        total.duplicate_effects += kills.duplicate_effects;
        total.contradictions += kills.contradictions;
        total.unreported += kills.unreported;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
