//! Services, a fleet of stages and an executor, turned by hand.

mod oracle;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use engine::version::Compile;
use executor::{
    admission::Refusal,
    command::{Addressee, Reader},
    report::{Identity, Statement},
};
use homeostat::{
    config,
    pipelines::Detectors,
    processor::{self, Processor, StageName},
    versions::{self, Compiler, History, Next},
};
use kafka::{
    Broker, Class, Clock, Consumer, ConsumerConfig, LoopConfig, Memory, Shutdown, StageLoop, Switches, TopicConfig,
    VirtualClock,
    memory::{Fault, Operation, Stored},
    partitions_of,
};
use protocol::{
    Batch, TopicPartition, cloudevent,
    message::{OutcomeStatus, PipelineText, PipelinesOrigin},
    signature::{self, Signer, TrustedKey},
};
use remediation::Trust;
use serde_json::Value;

use oracle::header;

const SERVICES: usize = 8;
const PARTITIONS: i32 = 4;
const JOB_PARTITIONS: i32 = 2;
const WINDOW_MS: i64 = 5_000;
/// From the command to the process being up again.
const RESTART_MS: i64 = 1_500;
/// Before this nothing is broken: stages have started and grace is over.
const CALM_MS: i64 = 20_000;

const PIPELINE: &str = "
CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '1' SECOND IDLE TIMEOUT INTERVAL '1' HOUR)
WITH (connector = 'kafka', topic = 'app', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE SOURCE heartbeats
  WATERMARK FOR event_time AS event_time - INTERVAL '500' MILLISECOND IDLE TIMEOUT INTERVAL '10' SECOND
WITH (connector = 'kafka', topic = 'heartbeats', format = 'heartbeat', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW load AS
SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '5' SECOND)
GROUP BY service, window_start, window_end;

CREATE SOURCE jobs (job STRING, took_s DOUBLE, at TIMESTAMP(3),
  WATERMARK FOR at AS at - INTERVAL '1' SECOND IDLE TIMEOUT INTERVAL '1' HOUR)
WITH (connector = 'kafka', topic = 'jobs', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW work AS
SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total
FROM TUMBLE(TABLE (SELECT ts, service, ms FROM app UNION ALL SELECT at, job, took_s * 1000 FROM jobs),
  DESCRIPTOR(ts), INTERVAL '5' SECOND)
GROUP BY service, window_start, window_end;

CREATE SINK work_rows FROM work WITH (topic = 'work_rows', format = 'json');

CREATE DETECTOR everywhere ON work KEY (service) FEATURES (n, total) USING static_threshold WITH (upper = -1);

CREATE DETECTOR every ON load KEY (service) FEATURES (n, total) USING static_threshold WITH (upper = -1);

CREATE DETECTOR quiet ON heartbeats KEY (service) USING silence WITH (timeout = '3 s');

CREATE POLICY restart_quiet ON quiet
  COOLDOWN INTERVAL '10' SECOND LIMIT 20 ACTIONS PER INTERVAL '10' MINUTE
  DO ACTION 'restart' TARGET service EXPIRES AFTER INTERVAL '30' SECOND MODE AUTO;
";

const CONFIG: &str = "
[topics]
tenant = \"sim\"
panes_partitions = 2
actions_partitions = 2
[decide]
default_mode = \"auto\"
startup_grace = \"8s\"
settle = \"1s\"
settle_silent = \"1s\"
verify_after = \"2s\"
verify_for = \"20s\"
refusal_interval = \"5s\"
reconsider = \"500ms\"
";

/// What else happens to the fleet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Stages die and come back, services crash.
    pub crashes: bool,
    /// Stages stop for longer than their session and go on in the middle of what they did.
    pub stalls: bool,
    /// Calls fail, answers get lost, markers come late.
    pub broker_faults: bool,
    /// The executor starts nothing after its expiry.
    pub honours_expiry: bool,
    pub skip_send_offsets: bool,
    pub skip_fencing: bool,
}

/// How often things happen.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub step_ms: i64,
    pub heartbeat_interval_ms: i64,
    pub row_interval_ms: i64,
}

impl Pace {
    /// Dense enough that whatever may meet does.
    const LIVELY: Self = Self {
        step_ms: 50,
        heartbeat_interval_ms: 500,
        row_interval_ms: 250,
    };
    /// As collectors are set up, for long times.
    pub const EASY: Self = Self {
        step_ms: 1_000,
        heartbeat_interval_ms: 1_000,
        row_interval_ms: 5_000,
    };
}

/// A service of the simulated fleet.
pub struct Service {
    name: String,
    /// `None` is up; else when it comes back.
    down_until_ms: Option<i64>,
    /// Up, but nobody hears of it.
    pub muted: bool,
    /// How far its clock is ahead.
    pub skew_ms: i64,
    /// By how much it takes longer than it used to.
    pub slower_ms: f64,
    /// How often everything it says reaches the broker.
    pub copies: u32,
    crashed: u32,
    next_heartbeat_ms: i64,
    next_row_ms: i64,
}

impl Service {
    pub fn is_up(&self) -> bool {
        self.down_until_ms.is_none()
    }

    pub fn crash(&mut self) {
        self.down_until_ms = Some(i64::MAX);
        self.crashed += 1;
    }

    /// Comes back by itself.
    pub fn crash_until(&mut self, up_ms: i64) {
        self.down_until_ms = Some(up_ms);
        self.crashed += 1;
    }
}

/// One thread's worth of fleet.
pub struct World {
    plan: Plan,
    pub pace: Pace,
    clock: Arc<VirtualClock>,
    memory: Memory,
    processor: Processor,
    loops: Vec<(StageName, StageLoop<'static>)>,
    instances: u32,
    pub services: Vec<Service>,
    /// Whether what services say reaches the broker.
    pub telemetry: bool,
    seed: u64,
    rows: Vec<(usize, i64, f64)>,
    jobs: Vec<(usize, i64, f64)>,
    executor: Executor,
}

/// Does what it is told without remembering: what is commanded twice is done twice.
struct Executor {
    consumer: Box<dyn Consumer>,
    reader: Reader,
    keys: Vec<TrustedKey>,
    identity: Identity,
    /// Effects by action id, counted where they happen.
    effects: BTreeMap<String, (String, u32)>,
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> Self {
        Self::running(seed, plan, PIPELINE, false)
    }

    /// A fleet whose pipelines are versioned, as those of `homeostat run` are, with statements beside the usual ones.
    pub fn versioned(seed: u64, plan: Plan, statements: &str) -> Self {
        Self::running(seed, plan, &format!("{PIPELINE}{statements}"), true)
    }

    fn running(seed: u64, plan: Plan, text: &str, versioned: bool) -> Self {
        let began_ms = 1_790_000_000_000;
        let clock = Arc::new(VirtualClock::new(began_ms));
        let memory = Memory::new(clock.clone());
        let mut heartbeats = TopicConfig::new("heartbeats", 2);
        heartbeats.log_append_time = true;
        memory
            .ensure_topics(&[
                TopicConfig::new("app", PARTITIONS),
                TopicConfig::new("jobs", JOB_PARTITIONS),
                heartbeats,
            ])
            .unwrap();
        let pipeline = sql::compile("sim", text, &Detectors)
            .unwrap_or_else(|refused| panic!("{}", refused.render("sim", text, false)));
        let mut processor = Processor {
            broker: Arc::new(memory.clone()),
            pipelines: Arc::from([pipeline]),
            versions: Vec::new(),
            config: config::load_text(CONFIG).unwrap(),
            observer: Arc::new(()),
            shutdown: Shutdown::new(),
            signer: Some(Arc::new(Signer::from_seed(&[7; 32]))),
            trust: Trust::default(),
            crash: None,
            switches: Switches {
                skip_send_offsets: plan.skip_send_offsets,
                skip_fencing: plan.skip_fencing,
            },
        };
        let history = processor.prepare().unwrap();
        if versioned {
            let (topics, texts) = (processor.topics(), [text_of(text)]);
            let running = versions::at_start(&memory, &topics, history, &texts, began_ms);
            processor.versions = running.unwrap();
        }
        let executor = Executor::new(&memory, &processor);
        let services = (0..SERVICES).map(|at| Service {
            name: format!("s{at}"),
            down_until_ms: None,
            muted: false,
            skew_ms: 0,
            slower_ms: 0.0,
            copies: 1,
            crashed: 0,
            next_heartbeat_ms: began_ms + at as i64 * 37,
            next_row_ms: began_ms + at as i64 * 23,
        });
        let mut world = Self {
            plan,
            pace: Pace::LIVELY,
            clock,
            memory,
            processor,
            loops: Vec::new(),
            instances: 0,
            services: services.collect(),
            telemetry: true,
            seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            rows: Vec::new(),
            jobs: Vec::new(),
            executor,
        };
        for name in StageName::ALL {
            world.start(name);
        }
        world.start(StageName::Aggregate);
        world.start(StageName::Detect);
        world
    }

    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    /// Applies another text, as `homeostat apply` does.
    pub fn apply(&mut self, statements: &str, from: &str, to: &str) {
        let text = format!("{PIPELINE}{statements}");
        let edited = text.replace(from, to);
        assert!(from.is_empty() || edited != text, "{from}");
        let (topics, texts) = (self.processor.topics(), vec![text_of(&edited)]);
        let compiled = Compiler.compile(&texts).unwrap();
        let named = processor::ensure_named(&self.memory, &topics, &self.processor.config, &compiled);
        named.unwrap();
        let written = versions::put(&self.memory, &topics, self.now_ms(), &mut |_| {
            Ok(Some(Next {
                texts: texts.clone(),
                origin: PipelinesOrigin::Operator,
                restores: None,
                by: "test".into(),
                reason: String::new(),
            }))
        });
        assert!(written.unwrap().written.is_some());
    }

    /// The oldest version of the pipelines that may have windows open.
    pub fn settled(&self) -> u64 {
        History::read(&self.memory, &self.processor.topics()).unwrap().settled
    }

    /// Leaves the last so many records of each partition of a topic.
    pub fn retain(&self, topic: &str, records: i64) {
        for partition in partitions_of(topic, PARTITIONS) {
            let (_, end) = self.memory.watermarks(&partition).unwrap();
            self.memory.truncate(&partition, end - records).unwrap();
        }
    }

    /// What services have said: which of them, when, and the number.
    pub fn rows(&self) -> &[(usize, i64, f64)] {
        &self.rows
    }

    /// A record on the first partition of a topic.
    pub fn write(&self, topic: &str, key: &str, value: &str) {
        let place = TopicPartition::new(topic, 0);
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        self.memory.append(&place, self.now_ms(), key, value, &[]).unwrap();
    }

    /// Every row that a sink has written, in no order.
    pub fn sink(&self, topic: &str) -> BTreeSet<String> {
        let records = self.memory.read_committed(topic);
        let text = |record: &Stored| String::from_utf8(record.value.clone().unwrap()).unwrap();
        let all: BTreeSet<String> = records.iter().map(text).collect();
        assert_eq!(all.len(), records.len(), "a row was written twice");
        all
    }

    /// Whether versions of the pipelines are followed, and stages that start begin with those that run.
    fn refresh(&mut self) {
        if !self.processor.versions.is_empty() {
            // A broker that fails now is asked again.
            let read = || History::read(&self.memory, &self.processor.topics()).ok();
            let history = (0..1_000).find_map(|_| read()).unwrap();
            self.processor.versions = history.running().unwrap();
        }
    }

    fn start(&mut self, name: StageName) {
        self.refresh();
        self.instances += 1;
        let mut config = LoopConfig::new(name.as_str());
        config.instance = Some(self.instances.to_string());
        config.clock = self.clock.clone();
        config.switches = self.processor.switches;
        if self.plan.stalls {
            // Only the generation tells that its owner is a zombie.
            config.transaction_timeout_ms = 60_000;
        }
        let stage = self.processor.stage(name).unwrap();
        let stage_loop = StageLoop::new(Arc::new(self.memory.clone()), stage, config, &()).unwrap();
        self.loops.push((name, stage_loop));
    }

    /// Quiet time: everybody does what he does.
    pub fn run_for(&mut self, duration_ms: i64) {
        let until_ms = self.now_ms() + duration_ms;
        while self.now_ms() < until_ms {
            self.step(false);
        }
    }

    /// Until the broker is healed, these calls fail and have no effect.
    pub fn fail(&self, fails: fn(Operation) -> bool) {
        self.memory
            .inject(move |operation| fails(operation).then_some(Fault::Before(Class::Retriable)));
    }

    pub fn heal(&self) {
        self.memory.heal();
    }

    /// Every instance in its turn drains and is replaced, with a while between.
    pub fn upgrade(&mut self, pause_ms: i64) {
        for _ in 0..self.loops.len() {
            let (name, mut stopped) = self.loops.remove(0);
            stopped.drain().unwrap();
            drop(stopped);
            self.start(name);
            self.run_for(pause_ms);
        }
    }

    /// One instance dies where it is and is replaced.
    pub fn kill_one(&mut self) {
        let victim = self.random(self.loops.len() as u64) as usize;
        let (name, killed) = self.loops.remove(victim);
        drop(killed);
        self.start(name);
    }

    /// Every instance dies where it is and is replaced.
    pub fn kill_all(&mut self) {
        for (name, killed) in std::mem::take(&mut self.loops) {
            drop(killed);
            self.start(name);
        }
    }

    /// Commands as they were published: id, service, and the broker's time.
    pub fn commands(&self) -> Vec<(String, String, i64)> {
        let records = self.memory.read_committed(&self.processor.topics().actions());
        let requested = |record: &&Stored| header(record, "ce_type") == Some(cloudevent::ACTION_REQUESTED);
        let command = |record: &Stored| {
            let data: Value = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (
                text(&data["action_id"]),
                text(&data["target"]["name"]),
                record.timestamp_ms,
            )
        };
        let mut commands: Vec<_> = records.iter().filter(requested).map(command).collect();
        commands.sort_by_key(|(_, _, at_ms)| *at_ms);
        commands
    }

    /// Ids of actions that a decision on record names.
    pub fn decided(&self) -> BTreeSet<String> {
        let decisions = self.events(&self.processor.topics().decisions(), cloudevent::DECISION);
        let named = decisions.iter().filter_map(|data| data["action_id"].as_str());
        named.map(str::to_owned).collect()
    }

    /// Gates that refused something.
    pub fn refused_by(&self) -> BTreeSet<String> {
        let decisions = self.events(&self.processor.topics().decisions(), cloudevent::DECISION);
        let named = decisions.iter().filter_map(|data| data["refused_by"].as_str());
        named.map(str::to_owned).collect()
    }

    pub fn count(&self, topic: &str) -> usize {
        let topics = self.processor.topics();
        self.memory.read_committed(&format!("{}{topic}", topics.prefix())).len()
    }

    /// Time with everything that the plan has in store.
    pub fn live(&mut self, duration_ms: i64) {
        self.run_for(CALM_MS);
        self.storm(duration_ms);
        // Who broke is found, healed and judged.
        self.run_for(45_000);
    }

    /// Time in which everything happens that the plan has in store.
    pub fn storm(&mut self, duration_ms: i64) {
        self.inject();
        let until_ms = self.now_ms() + duration_ms;
        while self.now_ms() < until_ms {
            self.disturb();
            self.step(true);
        }
        self.memory.heal();
        self.memory.delay_markers(None);
    }

    fn step(&mut self, uneven: bool) {
        self.clock.advance(self.pace.step_ms);
        self.speak();
        for at in 0..self.loops.len() {
            if uneven && self.random(4) == 0 {
                continue;
            }
            self.loops[at].1.turn(Duration::ZERO).unwrap();
        }
        self.execute();
    }

    fn disturb(&mut self) {
        if !self.plan.crashes {
            return;
        }
        match self.random(300) {
            0 => {
                let victim = self.random(self.loops.len() as u64) as usize;
                let (name, killed) = self.loops.remove(victim);
                drop(killed);
                self.start(name);
            }
            1 => {
                let victim = self.random(self.loops.len() as u64) as usize;
                let (name, mut stopped) = self.loops.remove(victim);
                let _ = stopped.drain();
                self.start(name);
            }
            2 => {
                let victim = self.random(SERVICES as u64) as usize;
                // More at once would be a storm, which the gates hold.
                if self.services.iter().all(Service::is_up) {
                    self.services[victim].crash();
                }
            }
            3..10 if self.plan.stalls => {
                let victim = self.random(self.loops.len() as u64) as usize;
                let stalled = self.loops.remove(victim);
                self.start(stalled.0);
                for _ in 0..300 {
                    self.step(true);
                }
                self.loops.push(stalled);
            }
            _ => {}
        }
    }

    fn inject(&mut self) {
        if !self.plan.broker_faults {
            return;
        }
        self.memory.delay_markers(Some(self.seed));
        let mut seed = self.seed;
        self.memory.inject(move |operation| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let draw = (seed >> 33) % 4_000;
            let class = [Class::Retriable, Class::Abort, Class::Fatal][draw as usize % 3];
            match (draw, operation) {
                (0..10, Operation::Poll | Operation::Watermarks | Operation::Committed) => {
                    Some(Fault::Before(Class::Retriable))
                }
                (0..10, _) => Some(Fault::Before(class)),
                (10..20, Operation::Commit | Operation::SendOffsets | Operation::Begin)
                    if class != Class::Retriable =>
                {
                    Some(Fault::After(class))
                }
                _ => None,
            }
        });
    }

    fn speak(&mut self) {
        let (now_ms, pace) = (self.now_ms(), self.pace);
        for at in 0..self.services.len() {
            let draw = self.random(u64::from(u32::MAX));
            let service = &mut self.services[at];
            if service.down_until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
                service.down_until_ms = None;
            }
            let heard = service.is_up() && !service.muted && self.telemetry;
            if service.next_heartbeat_ms <= now_ms {
                service.next_heartbeat_ms += pace.heartbeat_interval_ms;
                for _ in 0..if heard { service.copies } else { 0 } {
                    let beat = format!("{{\"service\":\"{}\"}}", service.name);
                    let partition = TopicPartition::new("heartbeats", (draw % 2) as i32);
                    self.memory
                        .append(&partition, now_ms, None, Some(beat.as_bytes()), &[])
                        .unwrap();
                }
            }
            let service = &mut self.services[at];
            if service.next_row_ms <= now_ms {
                service.next_row_ms += pace.row_interval_ms;
                for _ in 0..if heard { service.copies } else { 0 } {
                    let ts = now_ms + service.skew_ms - (draw >> 4) as i64 % 400;
                    let ms = (draw >> 8) as f64 % 500.0 + service.slower_ms;
                    let row = format!("{{\"service\":\"{}\",\"ms\":{ms},\"ts\":{ts}}}", service.name);
                    let partition = TopicPartition::new("app", (draw >> 2) as i32 & 3);
                    self.memory
                        .append(&partition, now_ms, None, Some(row.as_bytes()), &[])
                        .unwrap();
                    self.rows.push((at, ts, ms));
                    let (job, at_ms, took_s) = (&service.name, ts - 100, ms + 1.0);
                    let row = format!("{{\"job\":\"{job}\",\"took_s\":{took_s},\"at\":{at_ms}}}");
                    let partition = TopicPartition::new("jobs", (draw >> 3) as i32 & 1);
                    self.memory
                        .append(&partition, now_ms, None, Some(row.as_bytes()), &[])
                        .unwrap();
                    self.jobs.push((at, at_ms, took_s * 1_000.0));
                }
            }
        }
    }

    fn execute(&mut self) {
        let mut batch = Batch::default();
        if self.executor.consumer.poll(Duration::ZERO, &mut batch).is_err() {
            return;
        }
        let now_ms = self.now_ms();
        for record in batch
            .iter()
            .filter(|record| cloudevent::CloudEvent::kind_of(record) == Some(cloudevent::ACTION_REQUESTED))
        {
            let signed = signature::verify(&record, &self.executor.keys, now_ms);
            assert!(signed.is_ok(), "{signed:?}");
            let command = self
                .executor
                .reader
                .read(&record)
                .unwrap_or_else(|bad| panic!("a bad command: {}", bad.reason));
            let to = Addressee::from(&command);
            if self.plan.honours_expiry && now_ms > command.expiry_ms() {
                let late = Refusal {
                    status: OutcomeStatus::Expired,
                    code: 410,
                    reason: "it came too late".into(),
                };
                self.executor.say(&self.memory, &to, late.into(), now_ms);
                continue;
            }
            let name = command.service().to_owned();
            let effect = self.executor.effects.entry(command.id().to_string());
            effect.or_insert((name.clone(), 0)).1 += 1;
            let service = self
                .services
                .iter_mut()
                .find(|service| service.name == name)
                .expect("a service of this fleet");
            service.down_until_ms = Some(now_ms + RESTART_MS);
            for statement in [
                Statement::accepted(),
                Statement::started(),
                Statement::succeeded(BTreeMap::new().into_iter().collect()),
            ] {
                self.executor.say(&self.memory, &to, statement, now_ms);
            }
        }
    }

    /// Restarts by service, counted at the services.
    pub fn restarts(&self) -> BTreeMap<String, u32> {
        let mut restarts = BTreeMap::new();
        for (service, times) in self.executor.effects.values() {
            *restarts.entry(service.clone()).or_default() += times;
        }
        restarts
    }

    /// Everything committed, by topic.
    pub fn logs(&self) -> Vec<(String, Vec<Stored>)> {
        let topics = self.processor.topics().all();
        topics
            .into_iter()
            .map(|topic| (topic.name.clone(), self.memory.read_committed(&topic.name)))
            .collect()
    }

    /// Closes every window and checks what must hold of everything that was published.
    pub fn finish(&mut self) -> Result<(), String> {
        // What came after the rows that close every window would be late.
        self.telemetry = false;
        let end_ms = self.now_ms() + 30_000;
        for partition in partitions_of("app", PARTITIONS) {
            let row = format!("{{\"service\":\"end\",\"ms\":0,\"ts\":{end_ms}}}");
            self.memory
                .append(&partition, self.now_ms(), None, Some(row.as_bytes()), &[])
                .unwrap();
        }
        for partition in partitions_of("jobs", JOB_PARTITIONS) {
            let row = format!("{{\"job\":\"end\",\"took_s\":0,\"at\":{end_ms}}}");
            self.memory
                .append(&partition, self.now_ms(), None, Some(row.as_bytes()), &[])
                .unwrap();
        }
        self.run_for(5_000);
        self.check(end_ms)
    }

    /// Lets every window close: what came after these rows would be late.
    pub fn end(&mut self) {
        let _ = self.finish();
    }
}

fn text_of(text: &str) -> PipelineText {
    PipelineText {
        name: "sim".into(),
        text: text.to_owned(),
        files: BTreeMap::new(),
        begun: BTreeMap::new(),
    }
}

impl Executor {
    fn say(&self, memory: &Memory, to: &Addressee, statement: Statement, now_ms: i64) {
        let outcome = self.identity.outcome(to, statement, now_ms);
        let output = self.identity.event(to, &outcome);
        let headers: Vec<(&str, &[u8])> = output
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect();
        let partition = TopicPartition::new(output.topic, 0);
        let (key, value) = (output.key.as_deref(), output.value.as_deref());
        memory.append(&partition, now_ms, key, value, &headers).unwrap();
    }

    fn new(memory: &Memory, processor: &Processor) -> Self {
        let topics = processor.topics();
        let mut consumer = memory.consumer(&ConsumerConfig::new("executor", None)).unwrap();
        let partitions = partitions_of(&topics.actions(), processor.config.topics.actions_partitions);
        consumer
            .assign(
                &partitions
                    .into_iter()
                    .map(|partition| (partition, 0))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        let identity = Identity {
            executor: protocol::message::Executor {
                id: "sim".into(),
                version: "1".into(),
            },
            tenant: topics.tenant().to_owned(),
            topics,
            signer: None,
        };
        Self {
            consumer,
            reader: Reader::default(),
            keys: vec![TrustedKey::from_pem(&Signer::from_seed(&[7; 32]).public_pem()).unwrap()],
            identity,
            effects: BTreeMap::new(),
        }
    }
}
