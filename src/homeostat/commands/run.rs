//! `homeostat run`: the processor on a real Kafka.

use std::{io::IsTerminal, path::PathBuf, sync::Arc};

use engine::spec::Pipeline;
use kafka::{Broker, CrashPoint, Shutdown, Switches};
use tracing::{info, warn};

use crate::{
    commands::keys,
    config, observe, pipelines,
    processor::{Processor, StageName, ensure_named, require_exactly_once, retry},
    trust, versions,
};

/// Runs the pipelines of a folder until SIGTERM or Ctrl-C, then drains.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: KAFKA_BOOTSTRAP=127.0.0.1:9092 homeostat run --pipelines pipelines\n\n\
                        Run as many of it as you like, on as many machines: they share the work."
)]
pub struct Run {
    /// Folder with NAME/pipeline.sql; all of them are applied
    #[arg(long, default_value = "pipelines")]
    pipelines: PathBuf,
    /// Apply every change of the folder while it runs
    #[arg(long)]
    watch: bool,
    /// Configuration file; defaults when it is left out
    #[arg(long)]
    config: Option<PathBuf>,
    /// Only these stages, to scale one alone
    #[arg(long, value_enum, value_delimiter = ',')]
    stages: Vec<StageName>,
    /// Address of /metrics, /healthz and /readyz; overrides http.listen
    #[arg(long)]
    listen: Option<std::net::SocketAddr>,
}

impl Run {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = config::load(self.config.as_deref())?;
        crate::log::start(&config.log)?;
        let files = pipelines::find(&self.pipelines)?;
        let (texts, pipelines) = versions::texts(&files, &config.topics(), std::io::stderr().is_terminal())?;
        let signer = match &config.signing.key_file {
            Some(key_file) => Some(Arc::new(keys::signer(key_file)?)),
            None => None,
        };
        let trust = trust::load(&config)?;
        if !trust.knows_approvers() {
            warn!("no [[approver]] entry: whoever may write to the approvals topic approves");
        }
        if !trust.knows_executors() {
            warn!("no [[executor]] entry: whoever may write to the outcomes topic reports");
        }
        let broker: Arc<dyn Broker> = Arc::new(kafka::Kafka::new(&config.kafka)?);
        require_exactly_once(&*broker)?;
        let shutdown = Shutdown::new();
        crate::signals::request_on_signal(shutdown.clone())?;
        info!(
            bootstrap = config.kafka.bootstrap,
            signing_key = signer.as_ref().map(|signer| signer.id()),
            "starting"
        );
        let stages = if self.stages.is_empty() {
            StageName::ALL.to_vec()
        } else {
            self.stages.clone()
        };
        let (crash, switches) = test_faults()?;
        let observation = observe::start(self.listen.unwrap_or(config.http.listen), "homeostat")?;
        let observer = observation.stages();
        let mut processor = Processor {
            broker,
            pipelines,
            versions: Vec::new(),
            config,
            observer,
            shutdown,
            signer,
            trust,
            crash,
            switches,
        };
        let history = processor.prepare()?;
        let topics = processor.topics();
        let now_ms = kafka::Clock::now_ms(&kafka::SystemClock);
        let broker = &*processor.broker;
        let mut running = Ok(Vec::new());
        retry(&processor.shutdown, || {
            let read = versions::at_start(broker, &topics, history.clone(), &texts, now_ms);
            running = match read.map_err(|problem| problem.downcast::<kafka::Error>()) {
                Ok(versions) => Ok(versions),
                Err(Ok(error)) => return Err(error),
                Err(Err(problem)) => Err(problem),
            };
            Ok(())
        })?;
        processor.versions = running?;
        if let Some(newest) = processor.versions.last() {
            processor.pipelines = Arc::clone(&newest.pipelines);
            let names: Vec<&str> = newest.texts.iter().map(|text| text.name.as_str()).collect();
            info!(
                version = newest.number,
                pipelines = names.join(","),
                "pipelines in force"
            );
        }
        if self.watch {
            let (broker, config) = (Arc::clone(&processor.broker), processor.config.clone());
            let named = topics.clone();
            let prepare = move |pipelines: &[Pipeline]| Ok(ensure_named(&*broker, &named, &config, pipelines)?);
            let shutdown = processor.shutdown.clone();
            versions::watch(
                &processor.broker,
                topics,
                self.pipelines.clone(),
                texts,
                prepare,
                shutdown,
            )?;
        }
        let ended = processor.run(&stages);
        info!("drained");
        ended
    }
}

/// Where tests make the loop die, or take its safety away; nobody else sets these variables.
fn test_faults() -> Result<(Option<CrashPoint>, Switches), kafka::Error> {
    let crash = std::env::var(kafka::CRASH_POINT)
        .ok()
        .map(|text| CrashPoint::parse(&text))
        .transpose()?;
    let set = |name: &str| std::env::var_os(name).is_some();
    let switches = Switches {
        skip_send_offsets: set("HOMEOSTAT_TEST_SKIP_SEND_OFFSETS"),
        skip_fencing: set("HOMEOSTAT_TEST_SKIP_FENCING"),
    };
    Ok((crash, switches))
}
