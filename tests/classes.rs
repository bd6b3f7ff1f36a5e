//! One run of every class of `docs/scenarios.md`, end to end on a real Kafka: services break, the processor finds it, decides and signs,
//! the executor's program carries it out, the service is well again or not, and the verdict comes from the signal. All classes are side
//! by side in one fleet, as they would be: each is a service of its own, and none may get in another's way.
//!
//! What is done is counted where it is done: by the program that the executor runs, in a file to which it appends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::PathBuf,
    process::Stdio,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use kafka::{Clock, Producer, ProducerConfig, SystemClock};
use protocol::{
    CloudEvent, Output, cloudevent, id,
    message::{ApprovalRecord, Executor, Outcome, OutcomeStatus},
    signature::Signer,
};
use serde::Serialize;
use serde_json::Value;
use tests::rig;

use crate::{
    fleet::{Fleet, Over, Process, Published},
    programs::program,
};

const PATIENCE: Duration = Duration::from_secs(90);
const HEALTHY: usize = 20;
/// Broken by a test, each in its way.
const BROKEN: [&str; 10] = [
    "crash",
    "ladder",
    "hopeless",
    "asked",
    "passing",
    "maintained",
    "killed",
    "front",
    "back",
    "held",
];

const PIPELINE: &str = "
CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '500' MILLISECOND IDLE TIMEOUT INTERVAL '1' MINUTE MAX FUTURE SKEW INTERVAL '1' MINUTE)
WITH (connector = 'kafka', topic = '{prefix}app', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE SOURCE spans (caller STRING, callee STRING, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '500' MILLISECOND IDLE TIMEOUT INTERVAL '1' MINUTE)
WITH (connector = 'kafka', topic = '{prefix}spans', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE SOURCE heartbeats
  WATERMARK FOR event_time AS event_time - INTERVAL '500' MILLISECOND IDLE TIMEOUT INTERVAL '30' SECOND
WITH (connector = 'kafka', topic = '{prefix}heartbeats', format = 'heartbeat', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW latency AS
SELECT service, window_start, window_end, avg(ms) AS mean_ms
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '1' SECOND)
GROUP BY service, window_start, window_end;

CREATE FEATURE VIEW called AS
SELECT caller, callee, window_start, window_end, count(*) AS n
FROM TUMBLE(TABLE spans, DESCRIPTOR(ts), INTERVAL '2' SECOND)
GROUP BY caller, callee, window_start, window_end;

CREATE DETECTOR calls ON called KEY (caller, callee) FEATURES (n) USING static_threshold WITH (upper = 0);

CREATE DETECTOR slow ON latency KEY (service) FEATURES (mean_ms) USING static_threshold WITH (upper = 500);

CREATE POLICY heal_slow ON slow
  WHEN score >= 1 FOR 2 OF 3 WINDOWS CLEAR WHEN score < 1 FOR 2 WINDOWS
  COOLDOWN INTERVAL '1' SECOND LIMIT 100 ACTIONS PER INTERVAL '1' HOUR
  DO LADDER (restart, rollback) TARGET service EXPIRES AFTER INTERVAL '1' MINUTE MODE AUTO;

CREATE DETECTOR quiet ON heartbeats KEY (service) USING silence WITH (timeout = '3 s');

CREATE POLICY restart_quiet ON quiet
  COOLDOWN INTERVAL '1' SECOND LIMIT 100 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'restart' TARGET service EXPIRES AFTER INTERVAL '1' MINUTE MODE AUTO;
";

/// Times are short; safeguards are as they are, but for budgets, which ten faults at once would use up.
const CONFIG: &str = "
[decide]
default_mode = \"auto\"
startup_grace = \"3s\"
settle = \"1s\"
settle_silent = \"1s\"
settle_callers = \"3s\"
verify_after = \"2s\"
verify_for = \"8s\"
storm_cooldown = \"3s\"
refusal_interval = \"1s\"
concurrency_share = 1.0
limits_service = [{ actions = 20, per = \"1h\" }]
limits_fleet = [{ actions = 100, per = \"1h\" }]
calls_detectors = [\"*.calls\"]
[decide.actions.rollback]
impact = \"low\"
reversible = true
[signing]
key_file = \"signing.pem\"
[[approver]]
name = \"ada\"
roles = [\"sre\"]
key_file = \"ada.pub.pem\"
[[executor]]
id = \"hand\"
key_file = \"hand.pub.pem\"
";

fn now_ms() -> i64 {
    SystemClock.now_ms()
}

/// What is wrong with a service, and what ends it.
#[derive(Clone, Debug, Default)]
struct Service {
    silent: bool,
    slow: bool,
    cures: Vec<&'static str>,
}

/// The services, and what was done to them.
struct Shop {
    services: Mutex<BTreeMap<String, Service>>,
    effects: PathBuf,
}

impl Shop {
    fn services(&self) -> MutexGuard<'_, BTreeMap<String, Service>> {
        self.services.lock().unwrap()
    }

    fn break_down(&self, name: &str, fault: &Service) {
        self.services().insert(name.to_owned(), fault.clone());
    }

    /// (action id, kind, service), in order.
    fn effects(&self) -> Vec<(String, String, String)> {
        let text = fs::read_to_string(&self.effects).unwrap_or_default();
        let words = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?, words.next()?, words.next()?))
        };
        text.lines().filter_map(words).collect()
    }

    /// Kinds of what was done to a service.
    fn done(&self, service: &str) -> Vec<String> {
        let effects = self.effects().into_iter();
        effects
            .filter(|(_, _, name)| name == service)
            .map(|(_, kind, _)| kind)
            .collect()
    }

    /// Says what the services say until it is over, and lets what was done to them take effect.
    fn live(&self, fleet: &Fleet, over: &AtomicBool) -> anyhow::Result<()> {
        let mut producer = fleet.broker.producer(&ProducerConfig::new("services"))?;
        let mut seen = 0;
        for round in 0_i32.. {
            if over.load(Ordering::SeqCst) {
                return Ok(());
            }
            for (_, kind, name) in self.effects().split_off(seen) {
                seen += 1;
                if let Some(service) = self.services().get_mut(&name)
                    && service.cures.contains(&kind.as_str())
                {
                    *service = Service::default();
                }
            }
            // A broker that is busy loses a round; services go on.
            if let Err(error) = self.speak(fleet, &mut *producer, round) {
                eprintln!("round {round}: {error:#}");
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// What they all say in one round.
    fn speak(&self, fleet: &Fleet, producer: &mut dyn Producer, round: i32) -> anyhow::Result<()> {
        let services = self.services().clone();
        let ts = now_ms();
        for (at, (name, service)) in services.iter().enumerate() {
            // The front waits for the back.
            let slow = service.slow || name == "front" && services["back"].slow;
            let ms = if slow { 900 } else { 50 };
            let row = format!("{{\"service\":\"{name}\",\"ms\":{ms},\"ts\":{ts}}}");
            say(producer, fleet, "app", round % 2, row)?;
            if !service.silent && round % 2 == at as i32 % 2 {
                say(producer, fleet, "heartbeats", 0, format!("{{\"service\":\"{name}\"}}"))?;
            }
        }
        let call = format!("{{\"caller\":\"front\",\"callee\":\"back\",\"ts\":{ts}}}");
        say(producer, fleet, "spans", 0, call)?;
        if round % 10 == 0 {
            // Telemetry as it is: no JSON, from the future, from the past.
            say(producer, fleet, "app", 0, "\u{1}poison".into())?;
            for wrong in [ts + 600_000, ts - 600_000] {
                let row = format!("{{\"service\":\"healthy-1\",\"ms\":9000,\"ts\":{wrong}}}");
                say(producer, fleet, "app", 0, row)?;
            }
        }
        Ok(producer.flush()?)
    }
}

fn say(producer: &mut dyn Producer, fleet: &Fleet, topic: &str, partition: i32, text: String) -> anyhow::Result<()> {
    Ok(producer.send(&Output {
        topic: fleet.topic(topic).into(),
        partition: Some(partition),
        key: None,
        value: Some(text.into_bytes()),
        headers: Vec::new(),
    })?)
}

/// What the executor may do: a program that remembers by the action's id what it has done.
fn executor(fleet: &Fleet, shop: &Shop) -> anyhow::Result<Process> {
    let folder = fleet.folder.path();
    let act = folder.join("act");
    let effects = shop.effects.display();
    let script = format!(
        "#!/bin/sh\n/bin/grep -qs \"^$HOMEOSTAT_ACTION_ID \" {effects} || echo \"$HOMEOSTAT_ACTION_ID $1 $2\" >> {effects}\n"
    );
    fs::write(&act, script)?;
    fs::set_permissions(&act, fs::Permissions::from_mode(0o755))?;
    let mut text = format!(
        "id = \"hand\"\n[topics]\nprefix = {:?}\ntenant = {:?}\n[ledger]\npath = {:?}\n[signing]\nkey_file = \"hand.pem\"\n\
         [[trust]]\nkey_file = \"signing.pub.pem\"\n[kafka.settings]\n\"session.timeout.ms\" = \"6000\"\n",
        fleet.prefix,
        fleet.tenant,
        folder.join("ledger.redb")
    );
    for kind in ["restart", "rollback"] {
        text.push_str(&format!(
            "[[allow]]\naction = {kind:?}\ntarget = \"*\"\nadapter = \"catalogue\"\ncommand = {kind:?}\n\
             [[catalogue.command]]\nname = {kind:?}\nprogram = {act:?}\nargs = [{kind:?}, \"{{service}}\"]\nidempotent = true\n"
        ));
    }
    fs::write(folder.join("executor.toml"), text)?;
    let log = folder.join("executor.log");
    let child = program("homeostat-executor")
        .args(["--config", "executor.toml"])
        .env("KAFKA_BOOTSTRAP", &fleet.bootstrap)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::OpenOptions::new().create(true).append(true).open(&log)?)
        .spawn()
        .context("starting the executor")?;
    Ok(Process { child, log })
}

/// An operator's command on this fleet.
fn operator(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<()> {
    let done = program("homeostat")
        .args(arguments)
        .args(["--config", "homeostat.toml"])
        .env("KAFKA_BOOTSTRAP", &fleet.bootstrap)
        .env("USER", "ada")
        .env("HOMEOSTAT_APPROVER_KEY", "ada.pem")
        .current_dir(fleet.folder.path())
        .output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "homeostat {arguments:?}: {said}");
    Ok(())
}

/// An event that nobody of the fleet sends.
fn forged(fleet: &Fleet, kind: &str, key: &str) -> CloudEvent {
    let mint = id::derived("forged", &[kind, key]);
    CloudEvent::new(mint, &fleet.tenant, "/homeostat/eve", kind, key, now_ms())
}

fn forge(fleet: &Fleet, topic: &str, event: &CloudEvent, data: &impl Serialize) -> anyhow::Result<()> {
    let mut producer = fleet.broker.producer(&ProducerConfig::new("eve"))?;
    producer.send(&event.output(fleet.topic(topic), data))?;
    Ok(producer.flush()?)
}

fn sigkill(process: &mut Process) -> anyhow::Result<()> {
    process.child.kill()?;
    let status = process.child.wait()?;
    ensure!(status.signal() == Some(9), "it had ended before: {status}");
    Ok(())
}

/// The name of the service that an event is about.
fn of(record: &Published) -> String {
    let key = record.key.clone().unwrap_or_default();
    protocol::Target::from_key(&key).map_or_else(|_| key, |target| target.name)
}

/// Words for what was said of a service on a topic, by the field of that name.
fn words(found: &[Published], service: &str, kind: &str, field: &str) -> Vec<String> {
    let about = found
        .iter()
        .filter(|record| record.kind() == kind && of(record) == service);
    about
        .map(|record| record.json()[field].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn until(what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !done()? {
        ensure!(began.elapsed() < PATIENCE, "{what} after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

#[test]
fn every_class_of_scenarios_runs_end_to_end() -> anyhow::Result<()> {
    let _alone = rig::Kafka::alone();
    let fleet = Fleet::new("classes", PIPELINE, CONFIG)?;
    for (topic, partitions, stamped) in [("app", 2, false), ("spans", 1, false), ("heartbeats", 1, true)] {
        fleet.create(topic, partitions, stamped)?;
    }
    for (name, seed) in [("signing", 1), ("ada", 2), ("hand", 3)] {
        let signer = Signer::from_seed(&[seed; 32]);
        fs::write(fleet.folder.path().join(format!("{name}.pem")), signer.private_pem())?;
        fs::write(fleet.folder.path().join(format!("{name}.pub.pem")), signer.public_pem())?;
    }
    let names = (1..=HEALTHY).map(|at| format!("healthy-{at}"));
    let names = names.chain(BROKEN.map(str::to_owned));
    let shop = Shop {
        services: Mutex::new(names.map(|name| (name, Service::default())).collect()),
        effects: fleet.folder.path().join("effects"),
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&over);
        let living = scope.spawn(|| shop.live(&fleet, &over));
        let lived = all_classes(&fleet, &shop);
        over.store(true, Ordering::SeqCst);
        let living = living.join().expect("services do not panic");
        lived.and(living)
    })
}

fn all_classes(fleet: &Fleet, shop: &Shop) -> anyhow::Result<()> {
    let mut processor = fleet.start(&[])?;
    let mut hand = executor(fleet, shop)?;
    let calm = |found: &[Published]| {
        let clocks = found.iter().filter(|record| record.kind() == cloudevent::PROGRESS);
        clocks.count() >= 8 && !words(found, "front", cloudevent::ANOMALY, "detector").is_empty()
    };
    fleet.wait("anomalies", PATIENCE, calm)?;
    let silent = |cures: &[&'static str]| Service {
        silent: true,
        cures: cures.to_vec(),
        ..Service::default()
    };
    let slow = |cures: &[&'static str]| Service {
        slow: true,
        cures: cures.to_vec(),
        ..Service::default()
    };
    for service in ["asked", "passing"] {
        operator(fleet, &["mode", "approve", "--service", service, "--action", "restart"])?;
    }
    operator(fleet, &["maintenance", "--service", "maintained", "--for", "20s"])?;
    let maintained_ms = now_ms() + 19_000;
    shop.break_down("crash", &silent(&["restart"]));
    shop.break_down("ladder", &slow(&["rollback"]));
    shop.break_down("hopeless", &slow(&[]));
    shop.break_down("back", &slow(&["restart"]));
    shop.break_down("asked", &silent(&["restart"]));
    shop.break_down("passing", &silent(&["restart"]));
    shop.break_down("maintained", &silent(&["restart"]));
    people(fleet, shop)?;
    adversaries(fleet)?;
    killed(fleet, shop, &silent(&["restart"]), &mut processor, &mut hand)?;
    until("not every incident has come to its end", || {
        let incidents = fleet.read("incidents")?;
        let state = |service: &str| words(&incidents, service, cloudevent::INCIDENT, "state").pop();
        let settled =
            |service: &&str| ["front", "held"].contains(service) || state(service).as_deref() == Some("closed");
        Ok(state("hopeless").as_deref() == Some("escalated")
            && BROKEN.iter().filter(|service| **service != "hopeless").all(settled))
    })?;
    let maintained = words(
        &fleet.read("decisions")?,
        "maintained",
        cloudevent::DECISION,
        "refused_by",
    );
    ensure!(maintained.contains(&"maintenance".to_owned()), "{maintained:?}");
    kill_switch(fleet, shop, &silent(&["restart"]))?;
    storm(fleet, shop, &silent(&["restart"]))?;
    judged(fleet, shop, maintained_ms)?;
    ensure!(processor.terminate()? == 0 && hand.terminate()? == 0);
    Ok(())
}

/// A person is asked: a stranger's yes does not count, ada's does, and what recovers meanwhile needs nobody.
fn people(fleet: &Fleet, shop: &Shop) -> anyhow::Result<()> {
    let asks = |service: &str| -> anyhow::Result<Option<ApprovalRecord>> {
        let found = fleet.read("approvals")?;
        let request = found
            .iter()
            .find(|record| record.kind() == cloudevent::APPROVAL_REQUESTED && of(record) == service);
        Ok(request
            .map(|record| serde_json::from_value(record.json()))
            .transpose()?)
    };
    until("nobody was asked", || {
        Ok(asks("asked")?.is_some() && asks("passing")?.is_some())
    })?;
    shop.break_down("passing", &Service::default());
    let request = asks("asked")?.context("it was asked")?;
    let strangers = ApprovalRecord {
        by: Some("ada".into()),
        ..request.clone()
    };
    let event = forged(fleet, cloudevent::APPROVAL_GRANTED, &request.target_key);
    forge(fleet, "approvals", &event, &strangers)?;
    fleet.wait("approvals", PATIENCE, |found| {
        found.iter().any(|record| record.kind() == cloudevent::APPROVAL_REFUSED)
    })?;
    ensure!(shop.done("asked").is_empty(), "done on a stranger's yes");
    operator(fleet, &["approve", &request.approval_id.to_string()])
}

/// A command and an outcome that nobody signed.
fn adversaries(fleet: &Fleet) -> anyhow::Result<()> {
    let requested = |record: &&Published| record.kind() == cloudevent::ACTION_REQUESTED;
    let actions = fleet.wait("actions", PATIENCE, |found| {
        found.iter().any(|record| of(record) == "hopeless")
    })?;
    let genuine = actions.iter().filter(requested).find(|record| of(record) == "hopeless");
    let genuine = genuine.context("it was waited for")?.json();
    let key = genuine["target"]["key"]
        .as_str()
        .context("a target has a key")?
        .to_owned();
    let event = CloudEvent {
        expiry_time_ms: Some(now_ms() + 60_000),
        correlation_id: genuine["incident_id"].as_str().and_then(|id| id.parse().ok()),
        sequence: Some(u64::from(u32::MAX)),
        mode: Some("live".into()),
        ..forged(fleet, cloudevent::ACTION_REQUESTED, &key)
    };
    let mut command = genuine.clone();
    command["action_id"] = event.id.to_string().into();
    forge(fleet, "actions", &event, &command)?;
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let outcome = Outcome {
        action_id: text(&genuine["action_id"]).parse()?,
        incident_id: text(&genuine["incident_id"]).parse()?,
        attempt: 1,
        executor: Executor {
            id: "hand".into(),
            version: "1".into(),
        },
        status: OutcomeStatus::Succeeded,
        code: 200,
        retryable: false,
        at: now_ms(),
        effect: serde_json::Map::new(),
        error: None,
        payload_sha256: String::new(),
    };
    let kind = format!("{}succeeded.v1", cloudevent::OUTCOME_PREFIX);
    forge(fleet, "outcomes", &forged(fleet, &kind, &key), &outcome)
}

/// Processor and executor die of SIGKILL while a command is on its way.
fn killed(
    fleet: &Fleet,
    shop: &Shop,
    fault: &Service,
    processor: &mut Process,
    hand: &mut Process,
) -> anyhow::Result<()> {
    shop.break_down("killed", fault);
    fleet.wait("actions", PATIENCE, |found| {
        found.iter().any(|record| of(record) == "killed")
    })?;
    sigkill(hand)?;
    sigkill(processor)?;
    *processor = fleet.start(&[])?;
    *hand = executor(fleet, shop)?;
    Ok(())
}

/// While everything is stopped nothing starts; what is still broken when it is released is healed then.
fn kill_switch(fleet: &Fleet, shop: &Shop, fault: &Service) -> anyhow::Result<()> {
    operator(fleet, &["pause"])?;
    shop.break_down("held", fault);
    until("the kill switch refused nothing", || {
        let decisions = fleet.read("decisions")?;
        Ok(words(&decisions, "held", cloudevent::DECISION, "refused_by").contains(&"control".to_owned()))
    })?;
    ensure!(shop.done("held").is_empty(), "done while everything was stopped");
    operator(fleet, &["resume"])?;
    until("what was held back is not healed", || {
        let incidents = fleet.read("incidents")?;
        let state = words(&incidents, "held", cloudevent::INCIDENT, "state").pop();
        Ok(state.as_deref() == Some("closed"))
    })
}

/// So many at once have one cause, and it is none of theirs.
fn storm(fleet: &Fleet, shop: &Shop, fault: &Service) -> anyhow::Result<()> {
    let most = (1..=HEALTHY).map(|at| format!("healthy-{at}"));
    most.clone().for_each(|name| shop.break_down(&name, fault));
    until("no storm was seen", || {
        let decisions = fleet.read("decisions")?;
        let refused = decisions
            .iter()
            .filter(|record| record.json()["refused_by"] == "fleet_wide");
        Ok(refused.count() >= HEALTHY / 2)
    })?;
    most.clone()
        .for_each(|name| shop.break_down(&name, &Service::default()));
    until("the storm has not passed", || {
        let incidents = fleet.read("incidents")?;
        let closed = |name: String| {
            let states = words(&incidents, &name, cloudevent::INCIDENT, "state");
            states.last().is_none_or(|state| state == "closed")
        };
        Ok(most.clone().all(closed))
    })
}

/// What every class came to, by effects, verdicts and refusals.
fn judged(fleet: &Fleet, shop: &Shop, maintained_ms: i64) -> anyhow::Result<()> {
    let outcomes = fleet.read("outcomes")?;
    let verdicts = |service: &str| words(&outcomes, service, cloudevent::VERDICT, "verdict");
    for (service, done, said) in [
        ("crash", &["restart"][..], &["recovered"][..]),
        ("ladder", &["restart", "rollback"], &["unchanged", "recovered"]),
        ("hopeless", &["restart", "rollback"], &["unchanged", "unchanged"]),
        ("asked", &["restart"], &["recovered"]),
        ("maintained", &["restart"], &["recovered"]),
        ("killed", &["restart"], &["recovered"]),
        ("back", &["restart"], &["recovered"]),
        ("held", &["restart"], &["recovered"]),
        ("front", &[], &[]),
        ("passing", &[], &["superseded"]),
    ] {
        assert_eq!(shop.done(service), done, "{service}");
        assert_eq!(verdicts(service), said, "{service}");
    }
    for at in 1..=HEALTHY {
        let done = shop.done(&format!("healthy-{at}"));
        ensure!(done.is_empty(), "healthy-{at}: {done:?}");
    }
    let effects = shop.effects();
    let ids: BTreeSet<&String> = effects.iter().map(|(id, _, _)| id).collect();
    assert_eq!(ids.len(), effects.len(), "I1: one effect per action");
    let actions = fleet.read("actions")?;
    let commands: Vec<Value> = actions
        .iter()
        .filter(|record| record.headers.contains_key("ce_dssematerial"))
        .map(Published::json)
        .collect();
    for id in ids {
        let named = |command: &&Value| command["action_id"] == id.as_str();
        ensure!(
            commands.iter().any(|command| named(&command)),
            "{id} was done, and nobody commanded it"
        );
    }
    let held_back = commands
        .iter()
        .find(|command| command["target"]["name"] == "maintained");
    let decided = held_back.and_then(|command| command["timing"]["decided_at"].as_str());
    let decided_ms = decided
        .and_then(protocol::time::from_rfc3339)
        .context("a command has a time")?;
    ensure!(decided_ms >= maintained_ms, "commanded before the maintenance was over");
    let refused = words(&fleet.read("decisions")?, "front", cloudevent::DECISION, "refused_by");
    ensure!(
        refused.contains(&"dependency".to_owned()),
        "the calls were not learned: {refused:?}"
    );
    dead_letters(fleet)
}

/// What could not be used is put aside with the reason, whoever it came from.
fn dead_letters(fleet: &Fleet) -> anyhow::Result<()> {
    let letters = fleet.read("dead_letters")?;
    let reasons: Vec<(&str, &str)> = letters
        .iter()
        .map(|letter| {
            let header = |name: &str| letter.headers.get(name).map_or("", String::as_str);
            (header("source_topic"), header("reason"))
        })
        .collect();
    for (topic, reason) in [("actions", "unsigned"), ("outcomes", "unsigned"), ("app", "")] {
        let topic = fleet.topic(topic);
        let found = reasons.iter().any(|(from, why)| *from == topic && why.contains(reason));
        ensure!(found, "no dead letter of {topic}: {reasons:?}");
    }
    let late = fleet.read("late")?;
    ensure!(!late.is_empty(), "what came from the past is late");
    Ok(())
}
