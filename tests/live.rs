//! Invariants 1, 5, 12 and 13 while everything lives: a real Kafka, services that die, and SIGKILL for processors and executor while
//! they find that and heal it. Effects are counted at the services, each a process with a log of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use kafka::{Producer, ProducerConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use protocol::{Output, cloudevent};

use tests::rig;

use crate::{
    fleet::{Fleet, Over, Process, Published},
    programs::program,
    workload::CONFIG,
};

const SERVICES: usize = 8;
const PARTITIONS: i32 = 4;
const WINDOW_MS: i64 = 5_000;

const PIPELINE: &str = "
CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND IDLE TIMEOUT INTERVAL '10' MINUTE)
WITH (connector = 'kafka', topic = '{prefix}app', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE SOURCE heartbeats
  WATERMARK FOR event_time AS event_time - INTERVAL '500' MILLISECOND IDLE TIMEOUT INTERVAL '30' SECOND
WITH (connector = 'kafka', topic = '{prefix}heartbeats', format = 'heartbeat', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW load AS
SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '5' SECOND)
GROUP BY service, window_start, window_end;

CREATE DETECTOR every ON load KEY (service) FEATURES (n, total) USING static_threshold WITH (upper = 0);

CREATE DETECTOR quiet ON heartbeats KEY (service) USING silence WITH (timeout = '3 s');

CREATE POLICY restart_quiet ON quiet
  COOLDOWN INTERVAL '5' SECOND LIMIT 20 ACTIONS PER INTERVAL '10' MINUTE
  DO ACTION 'restart' TARGET service EXPIRES AFTER INTERVAL '1' MINUTE MODE AUTO;
";

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |elapsed| elapsed.as_millis() as i64)
}

/// A service: a process that writes a line with the action it was started for, and whose pid tells whether it lives.
struct Service {
    name: String,
    log: PathBuf,
    by_hand: Child,
    broken: u32,
}

impl Service {
    fn start(folder: &Path, at: usize) -> anyhow::Result<Self> {
        let name = format!("s{at}");
        let log = folder.join(format!("{name}.log"));
        let by_hand = std::process::Command::new("sh")
            .args(["-c", &Self::script(&log)])
            .env_remove("HOMEOSTAT_ACTION_ID")
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self {
            name,
            log,
            by_hand,
            broken: 0,
        })
    }

    fn script(log: &Path) -> String {
        format!(
            "echo \"${{HOMEOSTAT_ACTION_ID:-by hand}} $$\" >> {}; exec sleep 600",
            log.display()
        )
    }

    fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Action ids it was started for.
    fn effects(&self) -> Vec<String> {
        let starts = self.starts();
        let ids = starts.iter().filter_map(|line| line.split(' ').next());
        ids.filter(|id| *id != "by").map(str::to_owned).collect()
    }

    fn pid(&self) -> Option<u32> {
        self.starts().last()?.rsplit(' ').next()?.parse().ok()
    }

    fn lives(&self) -> bool {
        let Some(pid) = self.pid() else { return false };
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
    }

    fn kill(&self) {
        if let Some(pid) = self.pid() {
            let _ = std::process::Command::new("kill")
                .args(["-9", &pid.to_string()])
                .status();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        let _ = self.by_hand.wait();
    }
}

/// What the services say, from a thread of its own: rows over all partitions with null keys, and heartbeats.
struct Feeder {
    producer: Box<dyn Producer>,
    app: Arc<str>,
    heartbeats: Arc<str>,
    draw: u64,
    rows: Vec<(usize, i64, i64)>,
}

impl Feeder {
    fn new(fleet: &Fleet) -> anyhow::Result<Self> {
        Ok(Self {
            producer: fleet.broker.producer(&ProducerConfig::new("services"))?,
            app: fleet.topic("app").into(),
            heartbeats: fleet.topic("heartbeats").into(),
            draw: 0x9e37_79b9_7f4a_7c15,
            rows: Vec::new(),
        })
    }

    fn say(&mut self, topic: &Arc<str>, partition: i32, text: String) -> anyhow::Result<()> {
        Ok(self.producer.send(&Output {
            topic: Arc::clone(topic),
            partition: Some(partition),
            key: None,
            value: Some(text.into_bytes()),
            headers: Vec::new(),
        })?)
    }

    fn row(&mut self, service: usize) -> anyhow::Result<()> {
        self.draw = self
            .draw
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let ts = now_ms() - (self.draw >> 33) as i64 % 400;
        let ms = (self.draw >> 40) as i64 % 1_000;
        let partition = (self.draw >> 13) as i32 & 3;
        let app = Arc::clone(&self.app);
        self.say(
            &app,
            partition,
            format!("{{\"service\":\"s{service}\",\"ms\":{ms},\"ts\":{ts}}}"),
        )?;
        self.rows.push((service, ts, ms));
        Ok(())
    }

    fn round(&mut self, round: u64, services: &Mutex<Vec<Service>>) -> anyhow::Result<()> {
        let alive: Vec<bool> = services.lock().unwrap().iter().map(Service::lives).collect();
        for (at, alive) in alive.iter().enumerate() {
            self.row(at)?;
            if *alive && round % 5 == at as u64 % 5 {
                let heartbeats = Arc::clone(&self.heartbeats);
                self.say(&heartbeats, (round % 2) as i32, format!("{{\"service\":\"s{at}\"}}"))?;
            }
        }
        Ok(self.producer.flush()?)
    }

    /// Rows of a time that lets every window close, in every partition.
    fn close(&mut self) -> anyhow::Result<()> {
        let (app, ts) = (Arc::clone(&self.app), now_ms() + 30_000);
        for partition in 0..PARTITIONS {
            self.say(&app, partition, format!("{{\"service\":\"end\",\"ms\":0,\"ts\":{ts}}}"))?;
        }
        Ok(self.producer.flush()?)
    }

    fn windows(&self) -> BTreeMap<(String, i64), (i64, i64)> {
        let mut windows: BTreeMap<(String, i64), (i64, i64)> = BTreeMap::new();
        for (service, ts, ms) in &self.rows {
            let start = ts - ts.rem_euclid(WINDOW_MS);
            let window = windows.entry((format!("s{service}"), start)).or_default();
            *window = (window.0 + 1, window.1 + ms);
        }
        windows
    }
}

/// Windows as published; none twice.
fn published(anomalies: &[Published]) -> anyhow::Result<BTreeMap<(String, i64), (i64, i64)>> {
    let mut windows = BTreeMap::new();
    for record in anomalies.iter().filter(|record| record.kind() == cloudevent::ANOMALY) {
        let data = record.json();
        let service = data["target"]["service"].as_str().unwrap_or_default().to_owned();
        if data["detector"] != "every" || service == "end" {
            continue;
        }
        let start = data["window_start"]
            .as_str()
            .and_then(protocol::time::from_rfc3339)
            .context("a window has a start")?;
        let number = |name: &str| data["features"][name].as_f64().unwrap_or_default() as i64;
        let twice = windows
            .insert((service, start), (number("n"), number("total")))
            .is_some();
        ensure!(!twice, "a window was published twice: {data}");
    }
    Ok(windows)
}

fn executor(fleet: &Fleet, services: &[Service], environment: &[(&str, &str)]) -> anyhow::Result<Process> {
    let folder = fleet.folder.path();
    let mut text = format!(
        "[topics]\nprefix = {:?}\ntenant = {:?}\n[ledger]\npath = {:?}\n[kafka.settings]\n\"session.timeout.ms\" = \"6000\"\n",
        fleet.prefix,
        fleet.tenant,
        folder.join("ledger.redb")
    );
    for service in services {
        text.push_str(&format!(
            "[[allow]]\naction = \"restart\"\ntarget = {:?}\nadapter = \"process\"\n",
            service.name
        ));
    }
    for service in services {
        let (command, pid_file) = (
            ["sh", "-c", &Service::script(&service.log)],
            folder.join(format!("{}.json", service.name)),
        );
        text.push_str(&format!(
            "[[process.service]]\nname = {:?}\ncommand = {command:?}\npid_file = {pid_file:?}\nsettle_ms = 50\n",
            service.name
        ));
    }
    for key_file in trusted_keys(folder)? {
        text.push_str(&format!("[[trust]]\nkey_file = {key_file:?}\n"));
    }
    let config = folder.join("executor.toml");
    fs::write(&config, text)?;
    let log = folder.join("executor.log");
    let child = program("homeostat-executor")
        .arg("--config")
        .arg(&config)
        .env("KAFKA_BOOTSTRAP", &fleet.bootstrap)
        .envs(environment.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::OpenOptions::new().create(true).append(true).open(&log)?)
        .spawn()
        .context("starting the executor")?;
    Ok(Process { child, log })
}

/// Public keys that were made in the folder, each once: those that a rotation named by their ids, if there was one.
fn trusted_keys(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let parts = path.file_name().map(|name| name.to_string_lossy().split('.').count());
        if path.to_string_lossy().ends_with(".pub.pem") {
            found.push((parts.unwrap_or(0), path));
        }
    }
    let most = found.iter().map(|(parts, _)| *parts).max();
    let newest = found.into_iter().filter(|(parts, _)| Some(*parts) == most);
    Ok(newest.map(|(_, path)| path).collect())
}

fn keys(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = program("homeostat");
    command.arg("keys").args(arguments).args(["--key-file", "signing.pem"]);
    let done = command.current_dir(fleet.folder.path()).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn sigkill(process: &mut Process) -> anyhow::Result<()> {
    process.child.kill()?;
    let status = process.child.wait()?;
    ensure!(
        status.signal() == Some(9),
        "it had ended before: {status}; {}",
        fs::read_to_string(&process.log)?
    );
    Ok(())
}

fn no_id_comes_twice(fleet: &Fleet) -> anyhow::Result<()> {
    for topic in ["anomalies", "actions", "decisions", "outcomes", "incidents"] {
        let mut seen = BTreeSet::new();
        for record in fleet.read(topic)? {
            if [cloudevent::PROGRESS, cloudevent::JOURNAL].contains(&record.kind()) {
                continue;
            }
            let id = record.headers.get("ce_id").context("an event has an id")?;
            // An executor that died after it reported reports again: the same outcome under the same id.
            let repeated = topic == "outcomes" && record.kind().starts_with(cloudevent::OUTCOME_PREFIX);
            ensure!(
                seen.insert(id.clone()) || repeated,
                "{topic} has {} {id} twice",
                record.kind()
            );
        }
    }
    Ok(())
}

#[test]
fn processors_and_executor_are_killed_while_services_die_and_heal() -> anyhow::Result<()> {
    let _alone = rig::Kafka::alone();
    let fleet = Fleet::new("live", PIPELINE, CONFIG)?;
    fleet.create("app", PARTITIONS, false)?;
    fleet.create("heartbeats", 2, true)?;
    let services = (0..SERVICES)
        .map(|at| Service::start(fleet.folder.path(), at))
        .collect::<Result<Vec<_>, _>>()?;
    let services = Mutex::new(services);
    let over = AtomicBool::new(false);
    let mut feeder = Feeder::new(&fleet)?;
    keys(&fleet, &["generate"])?;
    let signing = [("HOMEOSTAT__SIGNING__KEY_FILE", "signing.pem")];
    thread::scope(|scope| -> anyhow::Result<()> {
        let _over = Over(&over);
        let feeding = scope.spawn(|| -> anyhow::Result<Feeder> {
            for round in 0.. {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                feeder.round(round, &services)?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(feeder)
        });
        let mut processors = [fleet.start(&signing)?, fleet.start(&signing)?];
        let mut hand = executor(&fleet, &services.lock().unwrap(), &[])?;
        fleet.wait("anomalies", Duration::from_secs(120), |found| !found.is_empty())?;
        for (round, victim) in [1, 3, 5, 7].into_iter().enumerate() {
            // While it is being found and healed, those who do that die: first one processor, then the executor.
            {
                let mut services = services.lock().unwrap();
                services[victim].kill();
                services[victim].broken += 1;
            }
            thread::sleep(Duration::from_millis(2_500 + 700 * round as u64));
            let at = round % 2;
            sigkill(&mut processors[at])?;
            // On the way the signing key is changed: executors learn of the next one first, then processors sign with it.
            match round {
                0 => keys(&fleet, &["rotate"])?,
                1 => keys(&fleet, &["rotate", "--activate"])?,
                _ => {}
            }
            processors[at] = fleet.start(&signing)?;
            thread::sleep(Duration::from_millis(1_000));
            sigkill(&mut hand)?;
            hand = executor(&fleet, &services.lock().unwrap(), &[])?;
            let began = Instant::now();
            while !services.lock().unwrap()[victim].lives() {
                ensure!(
                    began.elapsed() < Duration::from_secs(120),
                    "s{victim} was not healed within two minutes"
                );
                thread::sleep(Duration::from_millis(200));
            }
        }
        thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::SeqCst);
        let mut feeder = feeding.join().expect("the feeder does not panic")?;
        feeder.close()?;
        let expected = feeder.windows();
        let anomalies = fleet.wait("anomalies", Duration::from_secs(120), |found| {
            published(found).is_ok_and(|windows| windows.len() >= expected.len())
        })?;
        assert_eq!(published(&anomalies)?, expected);
        no_id_comes_twice(&fleet)?;
        let signed = |record: &Published| record.headers.contains_key("ce_dssematerial");
        ensure!(fleet.read("actions")?.iter().all(signed), "every command is signed");
        let refused = fleet.read("dead_letters")?;
        ensure!(refused.is_empty(), "nothing that was signed was refused: {refused:#?}");
        effects_are_those_commanded(&fleet, &services.lock().unwrap())?;
        for processor in processors {
            ensure!(processor.terminate()? == 0);
        }
        ensure!(hand.terminate()? == 0);
        Ok(())
    })
}

/// At most one start for an action id, only for actions that were commanded, only of services that had died.
fn effects_are_those_commanded(fleet: &Fleet, services: &[Service]) -> anyhow::Result<()> {
    let commanded: BTreeSet<String> = fleet
        .read("actions")?
        .iter()
        .filter_map(|record| record.headers.get("ce_id").cloned())
        .collect();
    let mut seen = BTreeSet::new();
    for service in services {
        let effects = service.effects();
        ensure!(
            (service.broken > 0) != effects.is_empty(),
            "{} broke {} times and was started for {effects:?}",
            service.name,
            service.broken
        );
        for id in effects {
            ensure!(
                commanded.contains(&id),
                "{} was started for {id}, which nobody commanded",
                service.name
            );
            ensure!(seen.insert(id.clone()), "{id} had its effect twice");
        }
    }
    println!(
        "{} services died, {} starts, each for an action of its own",
        services.iter().filter(|s| s.broken > 0).count(),
        seen.len()
    );
    Ok(())
}

/// From the operator's word over `control`, decide and a signed withdrawal to the executor, each a program of its own.
#[test]
fn a_command_that_a_person_took_back_is_not_carried_out() -> anyhow::Result<()> {
    let _alone = rig::Kafka::alone();
    let fleet = Fleet::new("taken-back", PIPELINE, CONFIG)?;
    fleet.create("app", PARTITIONS, false)?;
    fleet.create("heartbeats", 2, true)?;
    keys(&fleet, &["generate"])?;
    let services = (0..SERVICES)
        .map(|at| Service::start(fleet.folder.path(), at))
        .collect::<Result<Vec<_>, _>>()?;
    let services = Mutex::new(services);
    let over = AtomicBool::new(false);
    let mut feeder = Feeder::new(&fleet)?;
    thread::scope(|scope| -> anyhow::Result<()> {
        let _over = Over(&over);
        scope.spawn(|| -> anyhow::Result<()> {
            for round in 0.. {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                feeder.round(round, &services)?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let processor = fleet.start(&[("HOMEOSTAT__SIGNING__KEY_FILE", "signing.pem")])?;
        fleet.wait("anomalies", Duration::from_secs(120), |found| !found.is_empty())?;
        thread::sleep(Duration::from_secs(3));
        services.lock().unwrap()[2].kill();
        let patience = Duration::from_secs(60);
        let commands = fleet.wait("actions", patience, |found| !found.is_empty())?;
        let id = commands[0].headers.get("ce_id").context("a command has an id")?;
        let cancelled = program("homeostat")
            .args(["cancel", &id[..13], "--by", "ada", "--config", "homeostat.toml"])
            .env("KAFKA_BOOTSTRAP", &fleet.bootstrap)
            .current_dir(fleet.folder.path())
            .output()?;
        ensure!(
            cancelled.status.success(),
            "{}",
            String::from_utf8_lossy(&cancelled.stderr)
        );
        let withdrawn = |record: &Published| record.kind() == cloudevent::ACTION_CANCELLED;
        let actions = fleet.wait("actions", patience, |found| found.iter().any(withdrawn))?;
        ensure!(
            actions
                .iter()
                .all(|record| record.headers.contains_key("ce_dssematerial"))
        );
        // Only now is there somebody who could carry it out.
        let hand = executor(&fleet, &services.lock().unwrap(), &[])?;
        let said =
            |record: &Published| record.json()["status"] == "cancelled" && record.json()["action_id"] == id.as_str();
        let outcomes = fleet.wait("outcomes", patience, |found| found.iter().any(said))?;
        let verdicts: Vec<_> = outcomes
            .iter()
            .filter(|record| record.kind() == cloudevent::VERDICT)
            .collect();
        ensure!(
            verdicts.iter().all(|record| record.json()["verdict"] == "superseded"),
            "{verdicts:?}"
        );
        let incidents = fleet.read("incidents")?;
        let last = incidents.last().context("there is an incident")?.json();
        ensure!(
            last["state"] == "escalated" && last["reason"] == "cancelled by ada",
            "{last}"
        );
        ensure!(
            services.lock().unwrap()[2].effects().is_empty(),
            "it was started all the same"
        );
        ensure!(fleet.read("dead_letters")?.is_empty());
        ensure!(processor.terminate()? == 0 && hand.terminate()? == 0);
        Ok(())
    })
}

#[test]
fn after_a_kill_the_work_goes_on_within_thirty_seconds() -> anyhow::Result<()> {
    let _alone = rig::Kafka::alone();
    let fleet = Fleet::new("goes-on", PIPELINE, CONFIG)?;
    fleet.create("app", PARTITIONS, false)?;
    fleet.create("heartbeats", 2, true)?;
    let over = &AtomicBool::new(false);
    let mut feeder = Feeder::new(&fleet)?;
    thread::scope(|scope| -> anyhow::Result<()> {
        let _over = Over(over);
        let nobody = Mutex::new(Vec::new());
        scope.spawn(move || -> anyhow::Result<()> {
            while !over.load(Ordering::SeqCst) {
                (0..SERVICES).try_for_each(|service| feeder.row(service))?;
                feeder.round(0, &nobody)?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let mut first = fleet.start(&[])?;
        let mut second = fleet.start(&[])?;
        fleet.wait("anomalies", Duration::from_secs(120), |found| !found.is_empty())?;
        thread::sleep(Duration::from_secs(5));
        // Not restarted: the other one takes over what it had.
        sigkill(&mut first)?;
        let alone = goes_on(&fleet)?;
        // Nobody is left: a new process begins where the dead one stopped.
        sigkill(&mut second)?;
        let third = fleet.start(&[])?;
        let anew = goes_on(&fleet)?;
        println!("windows went on {alone:.1?} after a kill with another process, {anew:.1?} with a new one");
        ensure!(
            alone < Duration::from_secs(30) && anew < Duration::from_secs(30),
            "{alone:?}, {anew:?}"
        );
        ensure!(third.terminate()? == 0);
        Ok(())
    })
}

/// Time until every service has a window that ended after now. A window is published seconds after its end at the soonest.
fn goes_on(fleet: &Fleet) -> anyhow::Result<Duration> {
    let (began, killed_ms) = (Instant::now(), now_ms());
    fleet.wait("anomalies", Duration::from_secs(90), |found| {
        published(found).is_ok_and(|windows| {
            let after: BTreeSet<&String> = windows
                .keys()
                .filter(|(_, start)| start + WINDOW_MS > killed_ms)
                .map(|(service, _)| service)
                .collect();
            after.len() >= SERVICES
        })
    })?;
    Ok(began.elapsed())
}

/// A span with the program that sent it.
type Sent = (String, opentelemetry_proto::tonic::trace::v1::Span);

/// Takes what is exported by OTLP over HTTP, and keeps the spans.
fn collector() -> anyhow::Result<(String, Arc<Mutex<Vec<Sent>>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let spans = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&spans);
    thread::spawn(move || {
        for stream in listener.incoming() {
            stream
                .map_err(anyhow::Error::from)
                .and_then(|stream| taken(&stream, &kept))
                .unwrap();
        }
    });
    Ok((endpoint, spans))
}

fn taken(stream: &TcpStream, kept: &Mutex<Vec<Sent>>) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        head.push_str(&line.to_ascii_lowercase());
        line.clear();
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body)?;
    if head.starts_with("post /v1/traces") {
        for resource in ExportTraceServiceRequest::decode(&*body)?.resource_spans {
            let attributes = resource
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default();
            let name = attributes.iter().find(|attribute| attribute.key == "service.name");
            let name = format!("{:?}", name.and_then(|name| name.value.clone()));
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.lock().unwrap().extend(spans.map(|span| (name.clone(), span)));
        }
    }
    write!(
        &*stream,
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )?;
    Ok(())
}

#[test]
fn one_trace_tells_an_incident_from_anomaly_to_verdict_across_processes() -> anyhow::Result<()> {
    let _alone = rig::Kafka::alone();
    let fleet = Fleet::new(
        "trace",
        PIPELINE,
        &format!("{CONFIG}verify_after = \"1s\"\nverify_for = \"10s\"\n"),
    )?;
    fleet.create("app", PARTITIONS, false)?;
    fleet.create("heartbeats", 2, true)?;
    let (endpoint, spans) = collector()?;
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ];
    let services = (0..SERVICES)
        .map(|at| Service::start(fleet.folder.path(), at))
        .collect::<Result<Vec<_>, _>>()?;
    let services = Mutex::new(services);
    let over = &AtomicBool::new(false);
    let mut feeder = Feeder::new(&fleet)?;
    thread::scope(|scope| -> anyhow::Result<()> {
        let _over = Over(over);
        scope.spawn(|| -> anyhow::Result<()> {
            for round in 0.. {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                feeder.round(round, &services)?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let processor = fleet.start(&environment)?;
        let hand = executor(&fleet, &services.lock().unwrap(), &environment)?;
        fleet.wait("anomalies", Duration::from_secs(120), |found| !found.is_empty())?;
        thread::sleep(Duration::from_secs(3));
        services.lock().unwrap()[2].kill();
        let verdict = |record: &Published| record.kind() == cloudevent::VERDICT;
        let outcomes = fleet.wait("outcomes", Duration::from_secs(120), |found| found.iter().any(verdict))?;
        ensure!(processor.terminate()? == 0 && hand.terminate()? == 0);
        let verdict = outcomes
            .iter()
            .find(|record| verdict(record))
            .context("it was waited for")?;
        let parent = verdict.headers.get("ce_traceparent").context("a verdict has a trace")?;
        let trace = parent.split('-').nth(1).context("version-trace-span-flags")?;
        tells_the_incident(trace, &spans.lock().unwrap())
    })
}

/// Every step is a span of the trace, by the program that made it, and hangs on another span of it or is its root.
fn tells_the_incident(trace: &str, sent: &[Sent]) -> anyhow::Result<()> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let spans: Vec<&Sent> = sent.iter().filter(|(_, span)| hex(&span.trace_id) == trace).collect();
    let names: Vec<String> = spans
        .iter()
        .map(|(program, span)| format!("{program}: {}", span.name))
        .collect();
    println!("trace {trace}: {names:#?}");
    let ids: BTreeSet<&[u8]> = spans.iter().map(|(_, span)| &*span.span_id).collect();
    let roots = spans.iter().filter(|(_, span)| span.parent_span_id.is_empty()).count();
    ensure!(roots == 1, "{roots} roots in {names:#?}");
    for (_, span) in &spans {
        let known = span.parent_span_id.is_empty() || ids.contains(&*span.parent_span_id);
        ensure!(known, "{} hangs on a span that nobody sent: {names:#?}", span.name);
    }
    for (program, step) in [
        ("homeostat", "anomaly"),
        ("homeostat", "decision"),
        ("homeostat", "action"),
        ("homeostat-executor", "outcome"),
        ("homeostat", "verdict"),
    ] {
        let told = spans
            .iter()
            .any(|(by, span)| by.contains(&format!("\"{program}\"")) && span.name.contains(step));
        ensure!(told, "{program} sent no span of the {step}: {names:#?}");
    }
    Ok(())
}
