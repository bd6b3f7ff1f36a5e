//! The executor's program: configuration, logs, signals; everything else is in the library.

use std::{collections::BTreeMap, io::IsTerminal, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use executor::{
    Config, Error,
    adapter::{
        Adapter,
        alert::AlertAdapter,
        catalogue::CatalogueAdapter,
        docker::DockerAdapter,
        kubernetes::KubernetesAdapter,
        log::LogAdapter,
        process::{ProcessAdapter, launcher},
        systemd::SystemdAdapter,
        webhook::WebhookAdapter,
    },
    allow::AdapterKind,
    clock,
    config::LogFormat,
    crash::Crash,
    ledger::Ledger,
    report::Identity,
    run::{self, BrokerControl, BrokerReporter, Settings, Stop},
    trust::Trust,
    watch::Watch,
    worker::{AdapterKey, Cancellations, Worker},
};
use kafka::{Broker, ConsumerConfig, Kafka};
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

/// Carries out Homeostat's commands: verifies, claims, acts once, and reports.
#[derive(Parser)]
#[command(
    name = "homeostat-executor",
    version,
    after_help = "Example:\n  KAFKA_BOOTSTRAP=localhost:9092 homeostat-executor --config executor.toml\n\n\
                  Exit codes: 0 stopped by SIGTERM or Ctrl-C and drained, 1 could not go on, 2 wrong configuration."
)]
struct Cli {
    /// TOML file with what differs from the defaults; without it nothing is allowed
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read and check the configuration, then end
    #[arg(long)]
    check: bool,
    /// Print every key with its default and what it means, then end
    #[arg(long)]
    print_defaults: bool,
}

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == launcher::ARGUMENT)
    {
        let _ = launcher::run();
        return ExitCode::from(127);
    }
    let cli = Cli::parse();
    if cli.print_defaults {
        print!("{}", executor::config::DEFAULTS);
        return ExitCode::SUCCESS;
    }
    match execute(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if is_wrong_input(&error) { 2 } else { 1 })
        }
    }
}

fn is_wrong_input(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(Error::Config(_)))
            || matches!(cause.downcast_ref(), Some(kafka::Error::Config(_)))
            || cause.is::<observe::Error>()
    })
}

fn execute(cli: &Cli) -> anyhow::Result<()> {
    let config = Config::load(cli.config.as_deref())?;
    let adapters = adapters(&config)?;
    let trust = Trust::load(&config.trust, config.require_signature)?;
    let signer = config.signer()?.map(Arc::new);
    let broker: Arc<dyn Broker> = Arc::new(Kafka::new(&config.kafka)?);
    // Settings of the client library are checked when a client is made, which needs no connection.
    broker
        .consumer(&ConsumerConfig::new("homeostat-executor-check", None))?
        .close();
    let filter = EnvFilter::try_new(&config.log.filter)
        .map_err(|error| Error::Config(format!("log.filter = {:?}: {error}", config.log.filter)))?;
    let ledger_path = config.ledger_path().ok_or_else(|| {
        Error::Config("nothing says where state may be kept; set ledger.path, XDG_STATE_HOME or HOME".into())
    })?;
    let otlp = observe::Otlp::from_environment()?;
    if cli.check {
        println!("the configuration is valid");
        return Ok(());
    }
    start_log(config.log.format, filter);
    let stop = Stop::default();
    listen_for_signals(stop.clone())?;
    let ledger = Ledger::open(&ledger_path, Uuid::new_v4())?;
    tracing::info!(
        id = config.id, ledger = %ledger_path.display(), bootstrap = config.kafka.bootstrap,
        allowed = config.allow.len(), "starting"
    );
    if config.allow.is_empty() {
        tracing::warn!("the allow-list is empty: every command will be refused; add [[allow]] entries");
    }
    if trust.key_ids().is_empty() {
        tracing::warn!("no [[trust]] entry: commands are taken from whoever may write to the topic");
    } else {
        tracing::info!(
            keys = trust.key_ids().join(","),
            "commands have to be signed by one of these keys"
        );
    }
    let service = observe::Service {
        name: "homeostat-executor",
        version: env!("CARGO_PKG_VERSION"),
    };
    let observation = observe::Observation::start(&service, config.http.listen, otlp)?;
    let settings = settings(&config, trust);
    run::await_topics(broker.as_ref(), &settings, &stop)?;
    if stop.is_requested() {
        return Ok(());
    }
    let control = BrokerControl::new(Arc::clone(&broker), &settings, config.control_timeout(), stop.clone())?;
    let reporter = BrokerReporter::new(broker.as_ref(), &settings, stop.clone())?;
    let worker = Worker {
        identity: Identity {
            executor: protocol::message::Executor {
                id: config.id.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
            },
            tenant: settings.topics.tenant().to_owned(),
            topics: settings.topics.clone(),
            signer,
        },
        limits: config.limits(),
        bounds: config.bounds(),
        allow: config.allow.clone(),
        unlisted: config.unlisted,
        adapters,
        ledger,
        control: Box::new(control),
        cancelled: Cancellations::default(),
        reporter: Box::new(reporter),
        watch: Watch {
            metrics: Arc::clone(observation.metrics()),
            health: Arc::clone(observation.health()),
            spans: observation.spans().clone(),
        },
        crash: Crash::from_environment(),
        now_ms: Box::new(clock::now_ms),
    };
    run::run(broker, Arc::new(worker), settings, &stop)?;
    tracing::info!("stopped");
    Ok(())
}

fn adapters(config: &Config) -> Result<BTreeMap<AdapterKey, Box<dyn Adapter>>, Error> {
    // Still this program when its file has been replaced by an upgrade.
    let launcher = PathBuf::from("/proc/self/exe");
    let mut adapters = BTreeMap::<AdapterKey, Box<dyn Adapter>>::new();
    adapters.insert(
        (AdapterKind::Process, None),
        Box::new(ProcessAdapter::new(&config.process, launcher)),
    );
    adapters.insert((AdapterKind::Log, None), Box::new(LogAdapter::new(&config.command_log)));
    for endpoint in &config.webhook.endpoint {
        let adapter = WebhookAdapter::new(endpoint)?;
        adapters.insert((AdapterKind::Webhook, Some(endpoint.name.clone())), Box::new(adapter));
    }
    for entry in &config.catalogue.command {
        let adapter = CatalogueAdapter::new(entry)?;
        adapters.insert((AdapterKind::Catalogue, Some(entry.name.clone())), Box::new(adapter));
    }
    for receiver in &config.alert.receiver {
        let adapter = AlertAdapter::new(receiver)?;
        adapters.insert((AdapterKind::Alert, Some(receiver.name.clone())), Box::new(adapter));
    }
    if !config.docker.target.is_empty() {
        let adapter = DockerAdapter::new(&config.docker)?;
        adapters.insert((AdapterKind::Docker, None), Box::new(adapter));
    }
    if !config.systemd.target.is_empty() {
        let adapter = SystemdAdapter::new(&config.systemd)?;
        adapters.insert((AdapterKind::Systemd, None), Box::new(adapter));
    }
    if !config.kubernetes.target.is_empty() {
        let adapter = KubernetesAdapter::new(&config.kubernetes)?;
        adapters.insert((AdapterKind::Kubernetes, None), Box::new(adapter));
    }
    Ok(adapters)
}

fn settings(config: &Config, trust: Trust) -> Settings {
    let topics = config.topics();
    let group = config.group.clone();
    Settings {
        actions_topic: config.topics.actions.clone().unwrap_or_else(|| topics.actions()),
        group: group.unwrap_or_else(|| format!("{}executor", topics.prefix())),
        client_id: format!("homeostat-executor-{}", config.id),
        threads: config.concurrency,
        in_flight_max: config.in_flight_max,
        drain_timeout: Duration::from_millis(config.drain_timeout_ms),
        age_ms_max: config.limits.age_max_ms,
        retention_ms: config.retention_ms(),
        trust,
        topics,
    }
}

fn start_log(format: LogFormat, filter: EnvFilter) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The first SIGTERM or Ctrl-C asks to drain and end; a second ends at once, as without a handler.
fn listen_for_signals(stop: Stop) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("signals cannot be listened for")?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::spawn(move || {
        for patience in ["stopping: running actions are waited for", "stopping at once"] {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            tracing::info!("{patience}");
            if stop.is_requested() {
                std::process::exit(1);
            }
            stop.request();
        }
    });
    Ok(())
}
