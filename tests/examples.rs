//! The executors in `examples/`, each as a process on a real Kafka: what a trusted key signed has one effect, counted at the
//! target, and everything else has none and is answered with the reason.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use kafka::ProducerConfig;
use protocol::{
    Batch, CloudEvent, Output, Target, TimestampKind, cloudevent, id,
    message::{Action, ActionBody, ActionTarget, Approval, Explain, Ladder, Timing},
    signature::{self, Signer, TrustedKey},
};

use crate::{
    fleet::{Fleet, Process, Published},
    programs::root,
};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_example_in_python_keeps_the_contract() -> anyhow::Result<()> {
    keeps_the_contract("python", "executor.py")
}

#[test]
fn the_example_in_go_keeps_the_contract() -> anyhow::Result<()> {
    keeps_the_contract("go", "executor.go")
}

fn keeps_the_contract(language: &str, file: &str) -> anyhow::Result<()> {
    let folder = root().join("examples").join(language);
    let extension = Path::new(file).extension();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let is_source = path.extension() == extension;
        ensure!(
            !is_source || path.ends_with(file),
            "{file} is not all: {}",
            path.display()
        );
    }
    let lines = fs::read_to_string(folder.join(file))?.lines().count();
    ensure!(lines < 100, "{file} has {lines} lines");
    let example = Example::new(language)?;
    let (ours, theirs) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
    fs::write(example.keys().join("homeostat.pem"), ours.public_pem())?;
    let hand = Signer::from_seed(&[3; 32]);
    fs::write(example.own_key(), hand.private_pem())?;
    let process = example.start()?;

    let good = example.action(1, 60_000);
    let expired = example.action(2, -1_000);
    let tampered = example.action(3, 60_000);
    let stranger = example.action(4, 60_000);
    let unsigned = example.action(5, 60_000);
    let mut moved = example.action(6, 60_000);
    moved.target.target.tenant = "another".into();
    let not_listed = Action {
        action: ActionBody {
            kind: "delete".into(),
            ..good.action.clone()
        },
        ..example.action(7, 60_000)
    };
    let mut changed = example.signed(&tampered, &ours);
    let value = changed.value.as_mut().context("a command has data")?;
    let at = value
        .windows(7)
        .position(|bytes| bytes == b"restart")
        .context("its kind")?;
    value[at] = b'R';
    let mut reused = example.action(1, 60_000);
    reused.attempt = 2;
    let commands = [
        example.signed(&good, &ours),
        example.signed(&good, &ours),
        example.signed(&expired, &ours),
        changed,
        example.signed(&stranger, &theirs),
        example.output(&unsigned),
        example.signed(&moved, &ours),
        example.signed(&not_listed, &ours),
        example.signed(&reused, &ours),
        Output {
            value: Some(b"not a command".to_vec()),
            ..example.signed(&good, &ours)
        },
    ];
    example.send(&commands)?;
    // The last one is no command and gets no answer, but must not stop what comes after it.
    let after = example.action(8, 60_000);
    example.send(&[example.signed(&after, &ours)])?;
    let said = example.outcomes(&after, 1)?;
    let words = |action: &Action| -> Vec<(String, i64)> {
        let of_action = said
            .iter()
            .filter(|record| record.json()["action_id"] == action.action_id.to_string());
        of_action.map(word).collect()
    };
    let word = |status: &str, code: i64| (status.to_owned(), code);
    assert_eq!(
        words(&good),
        [word("succeeded", 200), word("succeeded", 200), word("rejected", 422)]
    );
    assert_eq!(words(&expired), [word("expired", 410)]);
    for refused in [&tampered, &stranger, &unsigned, &moved] {
        let found = words(refused);
        ensure!(
            matches!(found.as_slice(), [(status, 412 | 403)] if status == "rejected"),
            "{found:?}"
        );
    }
    assert_eq!(words(&not_listed), [word("rejected", 403)]);
    assert_eq!(words(&after), [word("succeeded", 200)]);
    for record in &said {
        let (headers, data) = (&record.headers, record.json());
        let (attempt, status) = (
            data["attempt"].as_u64().unwrap_or(0) as u32,
            data["status"].as_str().unwrap_or(""),
        );
        let expected = id::outcome(data["action_id"].as_str().unwrap_or("").parse()?, attempt, status);
        assert_eq!(headers["ce_id"], expected.to_string(), "{data}");
        assert_eq!(signer_of(record, &[&theirs, &hand])?, hand.id(), "{data}");
    }
    assert_eq!(
        example.effects(),
        [good.action_id.to_string(), after.action_id.to_string()]
    );

    // Killed and started again it has forgotten nothing: what comes again is answered and not done.
    drop(process);
    let _again = example.start()?;
    example.send(&[example.signed(&good, &ours)])?;
    example.outcomes(&good, 4)?;
    assert_eq!(example.effects().len(), 2);
    Ok(())
}

/// Whose signature an outcome carries, as the processor checks it.
fn signer_of(record: &Published, known: &[&Signer]) -> anyhow::Result<String> {
    let keys: Vec<TrustedKey> = known
        .iter()
        .map(|signer| TrustedKey::from_pem(&signer.public_pem()))
        .collect::<Result<_, _>>()?;
    let mut batch = Batch::default();
    let partition = batch.partition("outcomes", 0);
    let headers = record.headers.iter();
    let headers = headers.map(|(name, value)| (name.as_str(), value.as_bytes()));
    let (key, value) = (record.key.as_deref().map(str::as_bytes), record.value.as_deref());
    batch.push(partition, 0, (0, TimestampKind::LogAppend), key, value, headers);
    let record = batch.iter().next().context("it was pushed")?;
    Ok(signature::verify(&record, &keys, 0)?.to_owned())
}

fn word(record: &Published) -> (String, i64) {
    let data = record.json();
    (
        data["status"].as_str().unwrap_or_default().to_owned(),
        data["code"].as_i64().unwrap_or(0),
    )
}

/// A fleet's topics and one of the examples.
struct Example {
    fleet: Fleet,
    command: Vec<String>,
}

impl Example {
    fn new(language: &str) -> anyhow::Result<Self> {
        let fleet = Fleet::new(&format!("example-{language}"), "", "")?;
        for topic in ["actions", "outcomes"] {
            fleet.create(topic, 1, true)?;
        }
        let ready = Command::new(root().join("tests/examples/ready"))
            .arg(language)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(
            ready.status.success(),
            "tests/examples/ready {language}: {}",
            ready.status
        );
        let command = String::from_utf8(ready.stdout)?
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let example = Self { fleet, command };
        fs::create_dir(example.keys())?;
        fs::create_dir(example.folder().join("claims"))?;
        let script = format!(
            "#!/bin/sh\necho \"$HOMEOSTAT_ACTION_ID\" >> {}\n",
            example.effects_file().display()
        );
        fs::write(example.program(), script)?;
        fs::set_permissions(example.program(), fs::Permissions::from_mode(0o755))?;
        Ok(example)
    }

    fn folder(&self) -> &Path {
        self.fleet.folder.path()
    }

    fn keys(&self) -> PathBuf {
        self.folder().join("keys")
    }

    /// What it signs its outcomes with.
    fn own_key(&self) -> PathBuf {
        self.folder().join("executor.pem")
    }

    fn program(&self) -> PathBuf {
        self.folder().join("restart")
    }

    fn effects_file(&self) -> PathBuf {
        self.folder().join("effects")
    }

    /// Action ids in the order in which they were carried out, as the target saw it.
    fn effects(&self) -> Vec<String> {
        let text = fs::read_to_string(self.effects_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn start(&self) -> anyhow::Result<Process> {
        let log = self.folder().join("executor.log");
        // A file for the one, a folder for the other.
        let claims = match self.command.len() {
            1 => self.folder().join("claims"),
            _ => self.folder().join("claims/claims.db"),
        };
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .arg(self.keys())
            .args([&self.fleet.prefix, &self.fleet.tenant])
            .args([claims, self.program()])
            .env("KAFKA_BOOTSTRAP", &self.fleet.bootstrap)
            .env("EXECUTOR_KEY_FILE", self.own_key())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("starting the example")?;
        Ok(Process { child, log })
    }

    /// A restart of `cart`, the `number`th, that may start until so long from now.
    fn action(&self, number: u32, deadline_ms: i64) -> Action {
        let target = Target::service(&self.fleet.tenant, "cart");
        let incident_id = id::incident(&self.fleet.tenant, &target.key(), "heal", i64::from(number));
        let now_ms = kafka::Clock::now_ms(&kafka::SystemClock);
        Action {
            action_id: id::action(&self.fleet.tenant, &target.key(), incident_id, 1, 1),
            incident_id,
            decision_id: id::derived("decision", &[&number.to_string()]),
            attempt: 1,
            ladder: Ladder {
                step: 1,
                of: 1,
                policy: "heal".into(),
            },
            action: ActionBody {
                kind: "restart".into(),
                version: 1,
                params: serde_json::Map::new(),
            },
            target: ActionTarget {
                key: target.key(),
                target,
            },
            timing: Timing {
                decided_at: now_ms,
                start_deadline: now_ms + deadline_ms,
                exec_timeout_ms: 10_000,
                verify_after_ms: 1_000,
                verify_for_ms: 1_000,
            },
            mode: "live".into(),
            approval: Approval {
                required: false,
                state: "not_required".into(),
                id: None,
            },
            explain: Explain {
                policy: "heal".into(),
                detector: "quiet".into(),
                pipeline: "shop".into(),
                score: 1.0,
                evidence: vec![],
                gates: vec![],
            },
        }
    }

    fn output(&self, action: &Action) -> Output {
        let event = CloudEvent {
            expiry_time_ms: Some(action.timing.start_deadline),
            correlation_id: Some(action.incident_id),
            causation_id: Some(action.decision_id),
            sequence: Some(1),
            mode: Some(action.mode.clone()),
            ..CloudEvent::new(
                action.action_id,
                &action.target.target.tenant,
                &format!("/homeostat/{}/shop", self.fleet.tenant),
                cloudevent::ACTION_REQUESTED,
                &action.target.key,
                action.timing.decided_at,
            )
        };
        event.output(self.fleet.topic("actions"), action)
    }

    fn signed(&self, action: &Action, signer: &Signer) -> Output {
        let mut output = self.output(action);
        signer.sign(&mut output);
        output
    }

    fn send(&self, outputs: &[Output]) -> anyhow::Result<()> {
        let mut producer = self.fleet.broker.producer(&ProducerConfig::new("test"))?;
        for output in outputs {
            producer.send(output)?;
        }
        Ok(producer.flush()?)
    }

    /// Everything that was said, once so much was said of an action. Reading checks it against the schemas.
    fn outcomes(&self, of: &Action, count: usize) -> anyhow::Result<Vec<Published>> {
        let names = |record: &&Published| record.json()["action_id"] == of.action_id.to_string();
        let said = self.fleet.wait("outcomes", PATIENCE, |found| {
            found.iter().filter(names).count() >= count
        });
        said.with_context(|| fs::read_to_string(self.folder().join("executor.log")).unwrap_or_default())
    }
}
