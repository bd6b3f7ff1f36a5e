//! `homeostat demo`: the main job on a broker inside this process, with services to break and an executor to heal them.

use std::{io::IsTerminal, path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, anyhow};
use engine::spec::Pipeline;
use kafka::{Broker, Embedded, Shutdown, Switches, TopicConfig};
use remediation::Trust;
use simulator::demo::{self, Options, Programs, Summary};

use super::Output;
use crate::{
    config::{self, Config},
    error::{NotHealed, Refused},
    observe, pipelines,
    processor::{Processor, StageName, retry},
};

/// The pipeline and the configuration that a demonstration runs with when none are named: the files as shipped.
const PIPELINE: &str = include_str!("../../../pipelines/shop/pipeline.sql");
const CONFIGURATION: &str = include_str!("../../../pipelines/shop/homeostat.toml");

/// Breaks a small shop of services, again and again, and shows how it heals.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat demo --duration 120 --seed 7\n\n\
                        Exits 0 if every fault healed and nothing healthy was touched, 1 if not, 2 if it could not run.")]
pub struct Demo {
    /// Seconds, or a duration such as 5m; at least 60 seconds
    #[arg(long, default_value = "120", value_parser = seconds)]
    duration: Duration,
    /// Decides which faults come when and where
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A timeline for people, or a JSON object per line
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Leave the executor out: commands are published and nobody carries them out
    #[arg(long)]
    no_executor: bool,
    /// Folder with NAME/pipeline.sql in place of the shop's own pipeline
    #[arg(long)]
    pipelines: Option<PathBuf>,
    /// Configuration file in place of the shop's own
    #[arg(long)]
    config: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let duration = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if duration < demo::DURATION_MIN || duration > Duration::from_secs(24 * 3600) {
        return Err("from 60 seconds, which every kind of fault needs, to a day".into());
    }
    Ok(duration)
}

impl Demo {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut config = match &self.config {
            Some(path) => config::load(Some(path))?,
            None => config::load_text(CONFIGURATION)?,
        };
        let files = match &self.pipelines {
            Some(folder) => pipelines::find(folder)?,
            None => vec![pipelines::File::from_text(
                "shop",
                "pipelines/shop/pipeline.sql",
                PIPELINE,
            )],
        };
        let compiled = pipelines::compile_all(&files, std::io::stderr().is_terminal())?;
        let programs = Programs::beside_current().map_err(|error| Refused::new(error.to_string()))?;
        if self.output == Output::Text && std::env::var_os("RUST_LOG").is_none() {
            // The timeline is what people came for.
            config.log.filter = "warn".into();
        }
        crate::log::start(&config.log)?;
        let options = Options {
            duration: self.duration,
            seed: self.seed,
            output: match self.output {
                Output::Text => demo::Output::Text,
                Output::Json => demo::Output::Json,
            },
            executor: !self.no_executor,
            programs,
        };
        let summary = run_beside_processor(&options, config, compiled)?;
        if summary.healed() {
            Ok(())
        } else {
            Err(NotHealed.into())
        }
    }
}

/// The processor runs on threads of this process, as `homeostat run` would; it ends when the demonstration has.
fn run_beside_processor(options: &Options, config: Config, pipelines: Arc<[Pipeline]>) -> anyhow::Result<Summary> {
    let embedded = Embedded::start()?;
    let bootstrap = embedded.bootstrap().to_owned();
    let broker: Arc<dyn Broker> = Arc::new(embedded);
    let (interrupted, shutdown) = (Shutdown::new(), Shutdown::new());
    crate::signals::request_on_signal(interrupted.clone())?;
    create_topics(&*broker, &config, &interrupted)?;
    let topics = config.topics();
    let observation = observe::start(config.http.listen, "homeostat")?;
    let processor = Processor {
        broker: Arc::clone(&broker),
        pipelines,
        versions: Vec::new(),
        config,
        observer: observation.stages(),
        shutdown: shutdown.clone(),
        signer: None,
        trust: Trust::default(),
        crash: None,
        switches: Switches::default(),
    };
    processor.prepare()?;
    let work = thread::Builder::new()
        .name("processor".into())
        .spawn(move || processor.run(&StageName::ALL))?;
    let stopped = || interrupted.is_requested() || work.is_finished();
    let shown = demo::run(options, broker, &bootstrap, &topics, std::io::stdout(), &stopped);
    shutdown.request();
    let ended = work.join().map_err(|_| anyhow!("the processor panicked"))?;
    drop(observation);
    ended.context("the processor could not go on")?;
    Ok(shown?)
}

/// The services and whoever follows the timeline start before the processor may have come to it.
fn create_topics(broker: &dyn Broker, config: &Config, interrupted: &Shutdown) -> anyhow::Result<()> {
    let (panes, actions) = (config.topics.panes_partitions, config.topics.actions_partitions);
    let fleet = config.topics().all();
    let telemetry = demo::TELEMETRY.map(|(topic, partitions)| TopicConfig::new(topic, partitions));
    let topics: Vec<TopicConfig> = fleet
        .iter()
        .map(|spec| TopicConfig::from_spec(spec, panes, actions))
        .chain(telemetry)
        .collect();
    Ok(retry(interrupted, || broker.ensure_topics(&topics))?)
}
