//! The program itself: a process of its own over the embedded broker, killed and stopped by signals.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{Counted, EXECUTOR, action, output, wait_until};
use executor::crash::CrashPoint;
use kafka::{Broker, ConsumerConfig, Embedded, Polled, ProducerConfig, TopicConfig};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message;
use protocol::{
    Batch, CloudEvent, TopicPartition, Topics, id,
    message::{Outcome, OutcomeStatus},
};

struct Fleet {
    /// Dropped before the directory with its pid file: it ends the service.
    cart: Counted,
    directory: tempfile::TempDir,
    broker: Embedded,
    topics: Topics,
    config: PathBuf,
}

impl Fleet {
    fn new() -> Self {
        let broker = Embedded::start().unwrap();
        let topics = Topics::new("homeostat.");
        let specs: Vec<TopicConfig> = topics
            .all()
            .iter()
            .map(|spec| TopicConfig::from_spec(spec, 1, 2))
            .collect();
        broker.ensure_topics(&specs).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let cart = Counted::new(directory.path(), "cart");
        let config = directory.path().join("executor.toml");
        let service = &cart.service;
        let text = format!(
            "[kafka.settings]\n\"session.timeout.ms\" = \"2000\"\n\"heartbeat.interval.ms\" = \"500\"\n\
             [ledger]\npath = {:?}\n[[allow]]\naction = \"restart\"\ntarget = \"cart\"\nadapter = \"process\"\n\
             [[process.service]]\nname = \"cart\"\ncommand = {:?}\npid_file = {:?}\nsettle_ms = 50\n",
            directory.path().join("ledger.redb"),
            service.command,
            service.pid_file
        );
        fs::write(&config, text).unwrap();
        Self {
            directory,
            broker,
            topics,
            config,
            cart,
        }
    }

    fn start(&self, crash: Option<CrashPoint>) -> Program {
        match crash {
            Some(point) => self.start_with(&[("HOMEOSTAT_CRASH_POINT", point.as_str())]),
            None => self.start_with(&[]),
        }
    }

    fn start_with(&self, environment: &[(&str, &str)]) -> Program {
        let mut command = Command::new(EXECUTOR);
        command
            .arg("--config")
            .arg(&self.config)
            .current_dir(self.directory.path())
            .env("KAFKA_BOOTSTRAP", self.broker.bootstrap())
            .envs(environment.iter().copied())
            .stderr(Stdio::from(
                fs::File::create(self.directory.path().join("stderr.log")).unwrap(),
            ));
        Program(command.spawn().unwrap())
    }

    fn send(&self, action: &protocol::message::Action, sequence: u64) {
        let mut producer = self.broker.producer(&ProducerConfig::new("test")).unwrap();
        producer.send(&output(action, sequence)).unwrap();
        producer.flush().unwrap();
    }

    fn outcomes(&self) -> Vec<Outcome> {
        let partition = TopicPartition::new(self.topics.outcomes(), 0);
        let (start, end) = self.broker.watermarks(&partition).unwrap();
        let mut consumer = self.broker.consumer(&ConsumerConfig::new("test", None)).unwrap();
        consumer.assign(&[(partition, start)]).unwrap();
        let (mut outcomes, mut batch) = (Vec::new(), Batch::default());
        let deadline = Instant::now() + Duration::from_secs(20);
        while (outcomes.len() as i64) < end - start {
            assert!(Instant::now() < deadline, "{} of {end} outcomes", outcomes.len());
            if consumer.poll(Duration::from_millis(100), &mut batch).unwrap() == Polled::Records {
                for record in batch.iter() {
                    CloudEvent::read(&record).unwrap();
                    outcomes.push(serde_json::from_slice::<Outcome>(record.value.unwrap()).unwrap());
                }
            }
        }
        outcomes
    }

    fn last_words(&self) -> Vec<Outcome> {
        self.outcomes()
            .into_iter()
            .filter(|outcome| outcome.status.terminal())
            .collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr.log")).unwrap_or_default()
    }
}

struct Program(Child);

impl Program {
    fn terminate(mut self) -> std::process::ExitStatus {
        Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        self.wait()
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        wait_until("the program's end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn restarts_a_service_and_drains_at_sigterm() {
    let fleet = Fleet::new();
    let mut by_hand = fleet.cart.start_by_hand();
    let program = fleet.start(None);
    let action = action("cart", 1);
    fleet.send(&action, 1);
    wait_until("the outcome", || !fleet.last_words().is_empty());
    let outcome = fleet.last_words().remove(0);
    assert_eq!(
        (outcome.status, outcome.executor.id.as_str()),
        (OutcomeStatus::Succeeded, "local"),
        "{}",
        fleet.log()
    );
    assert_eq!(outcome.effect["pid_before"], by_hand.id());
    by_hand.wait().unwrap();
    assert!(program.terminate().success(), "{}", fleet.log());
    assert!(fleet.cart.runs(), "the service outlives the executor");
    assert_eq!(fleet.cart.starts(), ["by hand", &action.action_id.to_string()]);
    let left: Vec<String> = fs::read_dir(fleet.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| {
            !name.starts_with("cart") && !["executor.toml", "ledger.redb", "stderr.log"].contains(&name.as_str())
        })
        .collect();
    assert!(left.is_empty(), "written to the working directory: {left:?}");
}

#[test]
fn invariant_13_one_effect_through_a_kill_at_every_point_of_the_program() {
    std::thread::scope(|scope| {
        for point in CrashPoint::ALL {
            scope.spawn(move || one_effect_through_a_kill_at(point));
        }
    });
}

fn one_effect_through_a_kill_at(point: CrashPoint) {
    let fleet = Fleet::new();
    let mut by_hand = fleet.cart.start_by_hand();
    let action = action("cart", 1);
    let mut killed = fleet.start(Some(point));
    // Its first position is committed before the command comes, so that the successor starts there.
    wait_until("its assignment", || fleet.log().contains("reading commands"));
    fleet.send(&action, 1);
    assert_eq!(killed.wait().signal(), Some(9), "{point:?}: {}", fleet.log());
    let program = fleet.start(None);
    wait_until("the last word", || !fleet.last_words().is_empty());
    std::thread::sleep(Duration::from_millis(300));
    let expected = ["by hand", &action.action_id.to_string()];
    assert_eq!(fleet.cart.starts(), expected, "{point:?}: {}", fleet.log());
    let words = fleet.last_words();
    assert!(words.iter().all(|outcome| *outcome == words[0]), "{point:?}: {words:?}");
    assert_eq!(words[0].status, OutcomeStatus::Succeeded, "{point:?}");
    assert!(program.terminate().success(), "{point:?}: {}", fleet.log());
    let _ = by_hand.wait();
}

#[test]
fn its_span_hangs_under_the_command_and_its_metrics_are_served() {
    let fleet = Fleet::new();
    let mut by_hand = fleet.cart.start_by_hand();
    let (endpoint, exported) = collector();
    let program = fleet.start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
    let action = action("cart", 1);
    fleet.send(&action, 1);
    wait_until("the outcome", || !fleet.last_words().is_empty());
    let log = fleet.log();
    let address = log.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
    let served = get(address, "/metrics");
    assert!(
        served.contains("homeostat_executor_outcomes_total{code=\"200\",status=\"succeeded\"} 1"),
        "{served}"
    );
    assert!(get(address, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(program.terminate().success());
    let spans = exported.lock().unwrap();
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(span.trace_id, id::trace_id(action.incident_id));
    assert_eq!(span.parent_span_id, id::span_id(action.action_id));
    assert_eq!(span.name, "outcome succeeded");
    let _ = by_hand.wait();
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Takes whatever is exported, and keeps the spans.
fn collector() -> (String, Arc<Mutex<Vec<Span>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let spans = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&spans);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut reader = BufReader::new(&stream);
            let (mut path, mut line, mut length) = (String::new(), String::new(), 0);
            while reader.read_line(&mut line).unwrap() > 2 {
                if path.is_empty() {
                    path = line.clone();
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            if path.starts_with("POST /v1/traces") {
                let request = ExportTraceServiceRequest::decode(&*body).unwrap();
                let scopes = request
                    .resource_spans
                    .into_iter()
                    .flat_map(|resource| resource.scope_spans);
                kept.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
            }
            write!(
                &stream,
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            .unwrap();
        }
    });
    (endpoint, spans)
}

fn refused(config: &str, environment: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("executor.toml");
    fs::write(&path, config).unwrap();
    run(&path, environment)
}

fn run(config: &Path, environment: &[(&str, &str)]) -> String {
    let mut child = Command::new(EXECUTOR)
        .arg("--config")
        .arg(config)
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut program = Program(child);
    let code = program.wait().code();
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(code, Some(2), "{said}");
    said
}

#[test]
fn a_wrong_configuration_is_one_clear_error_and_exit_code_2() {
    assert!(refused("[limits]\nage_max = 1\n", &[]).contains("did you mean \"age_max_ms\"?"));
    assert!(refused("[kafka]\nbotstrap = \"x\"\n", &[]).contains("did you mean \"bootstrap\"?"));
    assert!(refused("", &[("HOMEOSTAT_EXECUTOR__LIMITS__AGE", "1")]).contains("age_max_ms"));
    assert!(refused("[log]\nfilter = \"a=b=c\"\n", &[]).contains("log.filter"));
    assert!(refused("[kafka.settings]\n\"no.such\" = \"1\"\n", &[]).contains("no.such"));
    assert!(run(Path::new("/nowhere.toml"), &[]).contains("/nowhere.toml"));
}

#[test]
fn checks_and_shows_its_configuration() {
    let output = Command::new(EXECUTOR).arg("--print-defaults").output().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("executor.toml");
    fs::write(&path, &output.stdout).unwrap();
    let check = Command::new(EXECUTOR)
        .arg("--check")
        .arg("--config")
        .arg(&path)
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let help = Command::new(EXECUTOR).arg("--help").output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Example:"));
}

/// Every adapter with something to act on, as far as it can be looked at without the other side.
const EVERY_ADAPTER: &str = r#"
[kubernetes]
kubeconfig = "KUBECONFIG"
[[kubernetes.target]]
service = "*"
kind = "deployment"
namespace = "shop"
[[docker.target]]
service = "*"
[[systemd.target]]
service = "*"
[[catalogue.command]]
name = "drain"
program = "/bin/sh"
[[alert.receiver]]
name = "chat"
kind = "slack"
url_env = "CHAT_URL"
[[webhook.endpoint]]
name = "pager"
url = "http://127.0.0.1:1/"
[[process.service]]
name = "cart"
command = ["cart"]
pid_file = "/run/cart.json"
"#;

#[test]
fn every_adapter_is_looked_at_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
                clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {token: t}}]\n";
    fs::write(&kubeconfig, text).unwrap();
    let mut whole = EVERY_ADAPTER.replace("\"KUBECONFIG\"", &format!("{kubeconfig:?}"));
    for (adapter, entry) in [
        ("kubernetes", ""),
        ("docker", ""),
        ("systemd", ""),
        ("process", ""),
        ("log", ""),
        ("catalogue", "command = \"drain\""),
        ("alert", "receiver = \"chat\""),
        ("webhook", "endpoint = \"pager\""),
    ] {
        let allow = format!("[[allow]]\naction = \"{adapter}\"\ntarget = \"*\"\nadapter = \"{adapter}\"\n{entry}\n");
        whole.push_str(&allow);
    }
    let path = directory.path().join("executor.toml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        let mut program = Command::new(EXECUTOR);
        program
            .arg("--check")
            .arg("--config")
            .arg(&path)
            .env("CHAT_URL", "http://127.0.0.1:1/secret");
        let output = program.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(&whole), (Some(0), String::new()));
    let missing = kubeconfig.with_extension("none");
    for (from, to, expected) in [
        ("/bin/sh", "/nowhere/drain", "/nowhere/drain"),
        ("CHAT_URL", "NO_CHAT_URL", "NO_CHAT_URL is not set"),
        (
            kubeconfig.to_str().unwrap(),
            missing.to_str().unwrap(),
            "kubeconfig.none",
        ),
        (
            "http://127.0.0.1:1/\"",
            "pager\"",
            "[[webhook.endpoint]] \"pager\": url",
        ),
    ] {
        let (code, error) = check(&whole.replace(from, to));
        assert!(code == Some(2) && error.contains(expected), "{code:?} {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
