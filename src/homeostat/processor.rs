//! The processor: topics made sure of, one thread per stage instance, an ordered end.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use engine::{spec::Pipeline, version::Version};
use kafka::{Broker, CrashPoint, LoopConfig, Observer, Shutdown, Switches, TopicConfig};
use protocol::{Stage, Topics, message::Control, signature::Signer};
use remediation::{Decide, Trust};
use tracing::{debug, error, info, warn};

use crate::{
    commands,
    config::Config,
    error::Refused,
    stages::{aggregate, decide, detect},
    versions::{Compiler, History},
};

/// Waits for the broker that are shorter are nothing to speak of.
const PATIENCE: Duration = Duration::from_millis(200);

/// A stage of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StageName {
    Aggregate,
    Detect,
    Decide,
}

impl StageName {
    pub const ALL: [Self; 3] = [Self::Aggregate, Self::Detect, Self::Decide];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aggregate => "aggregate",
            Self::Detect => "detect",
            Self::Decide => "decide",
        }
    }
}

/// Everything the stages of one process share.
pub struct Processor {
    pub broker: Arc<dyn Broker>,
    pub pipelines: Arc<[Pipeline]>,
    /// Versions of the pipelines that may have windows open, oldest first; empty where what runs is what the process began with.
    pub versions: Vec<Version>,
    pub config: Config,
    pub observer: Arc<dyn Observer>,
    pub shutdown: Shutdown,
    /// Signs commands.
    pub signer: Option<Arc<Signer>>,
    /// Whose approvals and outcomes count.
    pub trust: Trust,
    /// For tests only: where to die.
    pub crash: Option<CrashPoint>,
    /// For tests only: safety taken away.
    pub switches: Switches,
}

impl Processor {
    pub fn topics(&self) -> Topics {
        self.config.topics()
    }

    /// Runs the stages, for which [`prepare`](Self::prepare) has made sure of the topics, until a shutdown is requested, or one of
    /// them cannot go on.
    pub fn run(&self, stages: &[StageName]) -> anyhow::Result<()> {
        let failed = Mutex::new(None);
        thread::scope(|scope| {
            for name in stages {
                for instance in 0..self.instances(*name) {
                    let failed = &failed;
                    scope.spawn(move || {
                        let ended = self.run_stage(*name);
                        if let Err(problem) = ended {
                            error!(
                                stage = name.as_str(),
                                instance,
                                error = format!("{problem:#}"),
                                "stage ended"
                            );
                            failed
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .get_or_insert(problem);
                            self.shutdown.request();
                        }
                    });
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    fn instances(&self, name: StageName) -> usize {
        match name {
            StageName::Aggregate => self.config.stages.aggregate,
            StageName::Detect => self.config.stages.detect,
            StageName::Decide => self.config.stages.decide,
        }
    }

    fn run_stage(&self, name: StageName) -> anyhow::Result<()> {
        let stage = self.stage(name)?;
        let group = format!("{}{}", self.config.topics.prefix, name.as_str());
        let mut config = LoopConfig::new(group);
        config.commit_interval_ms = self.config.stages.commit_interval.as_millis() as i64;
        if self.crash.as_ref().is_some_and(|crash| crash.stage == name.as_str()) {
            // Transactions stay open from poll to poll, so that there is one to die in.
            config.output_interval_ms = 1_500;
            config.commit_interval_ms = 3_000;
        }
        config.crash = self.crash.clone();
        config.switches = self.switches;
        Ok(kafka::run_stage(
            Arc::clone(&self.broker),
            stage,
            config,
            &*self.observer,
            &self.shutdown,
        )?)
    }

    /// Builds a stage: pure, so that simulation and backtest build the same.
    pub fn stage(&self, name: StageName) -> anyhow::Result<Box<dyn Stage>> {
        let (pipelines, topics) = (Arc::clone(&self.pipelines), self.topics());
        let partitions = self.config.topics.panes_partitions;
        let newest = self.versions.last();
        Ok(match name {
            StageName::Aggregate => Box::new(match newest {
                Some(_) => aggregate::following(self.versions.clone(), topics, partitions, Arc::new(Compiler))?,
                None => aggregate::stage(pipelines, topics, partitions)?,
            }),
            StageName::Detect => {
                let options = detect::Options {
                    state_interval_ms: self.config.detect.state_interval.as_millis() as i64,
                    entity_ttl_ms: self.config.detect.entity_ttl.as_millis() as i64,
                };
                Box::new(match newest {
                    Some(newest) => detect::Detect::following(newest.clone(), topics, options, Arc::new(Compiler))?,
                    None => detect::Detect::new(pipelines, topics, options)?,
                })
            }
            StageName::Decide => {
                let policies = decide::policies(&pipelines, &topics);
                let (config, signer) = (self.config.decide.clone(), self.signer.clone());
                let stage = Decide::new(policies, topics.clone(), config, partitions, signer, self.trust.clone());
                Box::new(match newest {
                    Some(_) => stage.following(decide::policies_of_texts(Arc::new(Compiler), topics)),
                    None => stage,
                })
            }
        })
    }

    /// Creates what is missing of the fleet's topics, and returns what `control` says.
    pub fn prepare(&self) -> anyhow::Result<History> {
        let topics = self.topics();
        let counts = (
            self.config.topics.panes_partitions,
            self.config.topics.actions_partitions,
        );
        let replication = replication(&self.config);
        let mut wanted: Vec<TopicConfig> = topics
            .all()
            .iter()
            .map(|spec| TopicConfig::from_spec(spec, counts.0, counts.1))
            .collect();
        wanted.iter_mut().for_each(|topic| topic.replication = replication);
        retry(&self.shutdown, || self.broker.ensure_topics(&wanted))?;
        retry(&self.shutdown, || {
            ensure_named(&*self.broker, &topics, &self.config, &self.pipelines)
        })?;
        let mut history = History::default();
        retry(&self.shutdown, || {
            history = History::read(&*self.broker, &topics)?;
            Ok(())
        })?;
        self.agree_on_generation(&topics, history.panes_partitions)?;
        self.look_at_sources();
        Ok(history)
    }

    /// Entities are hashed to partitions of `panes`, and their state lies at the same number in `state`: another count of either
    /// would part an entity from its state. The count that the fleet began with stands in `control`.
    fn agree_on_generation(&self, topics: &Topics, recorded: Option<i32>) -> anyhow::Result<()> {
        let configured = self.config.topics.panes_partitions;
        let mut counts = [(topics.panes(), None), (topics.state(), None)];
        retry(&self.shutdown, || {
            for (topic, count) in &mut counts {
                *count = self.broker.partition_count(topic)?;
            }
            Ok(())
        })?;
        let found = counts.iter().map(|(topic, count)| (topic.as_str(), *count));
        let found = found.chain([("the fleet's generation record", recorded)]);
        for (what, count) in found.filter_map(|(what, count)| Some((what, count?))) {
            if count != configured {
                let help = format!(
                    "set topics.panes_partitions = {count}, or choose another topics.prefix for a fleet of another size"
                );
                return Err(Refused::new(format!(
                    "topics.panes_partitions is {configured}, but {what} has {count}"
                ))
                .help(help)
                .into());
            }
        }
        if recorded.is_none() && !self.shutdown.is_requested() {
            let generation = Control::Generation {
                panes_partitions: configured,
            };
            commands::control::publish(&*self.broker, topics, &generation, 0)?;
        }
        Ok(())
    }

    /// Says at startup what an operator would otherwise have to find out.
    fn look_at_sources(&self) {
        for source in self.pipelines.iter().flat_map(|pipeline| &pipeline.sources) {
            match self.broker.partition_count(&source.topic) {
                Ok(Some(partitions)) => info!(source = source.name, topic = source.topic, partitions, "source"),
                Ok(None) => warn!(
                    source = source.name,
                    topic = source.topic,
                    "topic of source does not exist yet; waiting for it"
                ),
                Err(error) => {
                    warn!(source = source.name, topic = source.topic, %error, "topic of source cannot be looked at")
                }
            }
            if source.format.is_timed_by_log() {
                let clock = match self.broker.log_append_time(&source.topic) {
                    Ok(true) => "broker append time",
                    Ok(false) => "receive time, since the topic does not use LogAppendTime",
                    Err(_) => continue,
                };
                info!(
                    source = source.name,
                    topic = source.topic,
                    event_time = clock,
                    "timed by the log"
                );
            }
        }
    }
}

fn replication(config: &Config) -> Option<i32> {
    Some(config.topics.replication_factor).filter(|factor| *factor > 0)
}

/// Creates what is missing of the topics that pipelines name: for commands and late rows, under the fleet's prefix, and of sinks. The
/// operator's own topics are taken with as many partitions as they have.
pub fn ensure_named(
    broker: &dyn Broker,
    topics: &Topics,
    config: &Config,
    pipelines: &[Pipeline],
) -> Result<(), kafka::Error> {
    let policies = pipelines.iter().flat_map(|pipeline| &pipeline.policies);
    let into = policies.map(|policy| policy.into.clone());
    let views = pipelines.iter().flat_map(|pipeline| &pipeline.views);
    let late = views.filter_map(|view| view.window.late_topic.clone());
    let prefixed = into.chain(late).map(|name| format!("{}{name}", topics.prefix()));
    let sinks = pipelines.iter().flat_map(|pipeline| &pipeline.sinks);
    let named: BTreeSet<String> = prefixed.chain(sinks.map(|sink| sink.topic.clone())).collect();
    let mut wanted = Vec::new();
    for name in named {
        if broker.partition_count(&name)?.is_none() {
            let mut topic = TopicConfig::new(name, 1);
            topic.replication = replication(config);
            wanted.push(topic);
        }
    }
    broker.ensure_topics(&wanted)
}

/// A broker that is away is waited for until a shutdown is requested; whatever else is wrong is said at once.
pub fn retry(shutdown: &Shutdown, mut attempt: impl FnMut() -> Result<(), kafka::Error>) -> Result<(), kafka::Error> {
    let mut wait = Duration::from_millis(25);
    loop {
        match attempt() {
            Err(error) if error.class() == kafka::Class::Retriable && !shutdown.is_requested() => {
                // A topic made a moment ago has no leader yet.
                match wait < PATIENCE {
                    true => debug!(%error, "trying again"),
                    false => warn!(%error, "broker does not answer; trying again"),
                }
                thread::sleep(wait);
                wait = (wait * 2).min(Duration::from_secs(5));
            }
            done => return done,
        }
    }
}

/// `run` needs what exactly-once needs.
pub fn require_exactly_once(broker: &dyn Broker) -> Result<(), Refused> {
    let capabilities = broker.capabilities();
    if capabilities.transactions && capabilities.fencing && capabilities.aborted_hidden && capabilities.unbounded_log {
        return Ok(());
    }
    Err(Refused::new(format!(
        "the {} broker is at-least-once and keeps a bounded log: `run` needs a real Kafka",
        broker.name()
    ))
    .help("set KAFKA_BOOTSTRAP, or kafka.bootstrap in the configuration; `homeostat demo` runs on the embedded broker"))
}
