//! What operators type, as programs on a real Kafka: models, explanations, withdrawals, keys; with what is right and what is wrong.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::ensure;
use kafka::ProducerConfig;
use protocol::{
    CloudEvent, Output, Target, cloudevent, id,
    message::{ActionBody, Choice, ChoiceOption, Decision, DecisionKind, Gate, Mode, Verdict, VerdictRecord},
    signature::{Signer, TrustedKey},
};
use serde_json::{Value, json};

use crate::{fleet::Fleet, programs::program};

/// What a program answered.
struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Answer {
    #[track_caller]
    fn is(&self, code: i32, said: &str) -> &Self {
        let all = format!("{}{}", self.out, self.err);
        assert_eq!(self.code, code, "{all}");
        assert!(all.contains(said), "{said:?} is not in:\n{all}");
        self
    }
}

fn run(name: &str, folder: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Answer> {
    let done = program(name)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(folder)
        .output()?;
    Ok(Answer {
        code: done.status.code().unwrap_or(-1),
        out: String::from_utf8(done.stdout)?,
        err: String::from_utf8(done.stderr)?,
    })
}

/// A fleet's topics, and `homeostat` beside them.
struct Desk(Fleet);

impl Desk {
    fn new(name: &str) -> anyhow::Result<Self> {
        let fleet = Fleet::new(name, "", "")?;
        for topic in ["anomalies", "control", "outcomes", "approvals", "decisions"] {
            fleet.create(topic, 1, true)?;
        }
        Ok(Self(fleet))
    }

    fn homeostat(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        let environment = [("KAFKA_BOOTSTRAP", self.0.bootstrap.as_str()), ("USER", "ada")];
        let mut all = arguments.to_vec();
        all.extend(["--config", "homeostat.toml"]);
        run("homeostat", self.0.folder.path(), &environment, &all)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.0.folder.path().join(name), text)?)
    }

    /// A model by which low memory calls for `low` and high memory for `high`.
    fn train(&self, name: &str, low: &str, high: &str) -> anyhow::Result<()> {
        let mut table = String::from("incident,label,memory_mib,rps\n");
        for row in 0..60 {
            let (label, memory, rps) = if row % 2 == 0 {
                (high, 950, 100)
            } else {
                (low, 220, 800)
            };
            table.push_str(&format!("i-{row},{label},{},{}\n", memory + row, rps + row));
        }
        self.write("past.csv", &table)?;
        let trained = run(
            "homeostat",
            self.0.folder.path(),
            &[],
            &["train", "--input", "past.csv", "--output", name],
        )?;
        trained.is(0, "");
        Ok(())
    }

    /// Decisions that were drawn half and half, and healed where the action was right.
    fn record(&self, decisions: impl IntoIterator<Item = (Decision, VerdictRecord)>) -> anyhow::Result<()> {
        let mut producer = self.0.broker.producer(&ProducerConfig::new("test"))?;
        let output = |kind: &str, topic: &str, event_id, target: &str, data: &dyn erased::Serialize| -> Output {
            let event = CloudEvent::new(event_id, &self.0.tenant, "/homeostat/test", kind, target, 1);
            let mut output = event.output(self.0.topic(topic), &Value::Null);
            output.value = Some(data.bytes());
            output
        };
        for (decision, verdict) in decisions {
            let verdict_id = id::derived("verdict", &[&verdict.action_id.to_string()]);
            let target = decision.target_key.clone();
            producer.send(&output(
                cloudevent::DECISION,
                "decisions",
                decision.decision_id,
                &target,
                &decision,
            ))?;
            producer.send(&output(cloudevent::VERDICT, "outcomes", verdict_id, &target, &verdict))?;
        }
        Ok(producer.flush()?)
    }

    /// Versions by the model's list, newest first.
    fn versions(&self) -> anyhow::Result<Vec<(String, String)>> {
        let listed = self.homeostat(&["model", "list", "--output", "json"])?;
        listed.is(0, "");
        let line = |line: &str| -> anyhow::Result<(String, String)> {
            let said: Value = serde_json::from_str(line)?;
            let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
            Ok((text("policy"), text("version")))
        };
        listed.out.lines().map(line).collect()
    }
}

/// The least that lets one function publish two types.
mod erased {
    pub trait Serialize {
        fn bytes(&self) -> Vec<u8>;
    }

    impl<T: serde::Serialize> Serialize for T {
        fn bytes(&self) -> Vec<u8> {
            serde_json::to_vec(self).expect("event data is JSON")
        }
    }
}

fn decided(tenant: &str, number: usize) -> (Decision, VerdictRecord) {
    let (right, memory, rps) = if number.is_multiple_of(2) {
        ("restart", 950, 100)
    } else {
        ("scale_up", 220, 800)
    };
    let taken = if (number / 2).is_multiple_of(2) {
        "restart"
    } else {
        "scale_up"
    };
    let text = number.to_string();
    let key = Target::service(tenant, "cart").key();
    let option = |action: &str| ChoiceOption {
        action: action.into(),
        probability: Some(0.5),
        expected: 0.5,
        propensity: 0.5,
        refused_by: None,
    };
    let decision = Decision {
        decision_id: id::derived("decision", &[&text]),
        incident_id: id::derived("incident", &[&text]),
        target_key: key.clone(),
        policy: "heal".into(),
        pipeline: "shop".into(),
        detector: "slow".into(),
        decided_at: 1_700_000_000_000 + number as i64,
        verdict: DecisionKind::Act,
        refused_by: None,
        gates: vec![Gate {
            gate: "cooldown".into(),
            passed: true,
            values: BTreeMap::from([("used".to_owned(), json!(0))]),
        }],
        mode: Mode::Auto,
        action_id: Some(id::derived("action", &[&text])),
        action: Some(ActionBody {
            kind: taken.into(),
            version: 1,
            params: serde_json::Map::new(),
        }),
        propensity: 0.5,
        score: 2.5,
        evidence: vec![id::derived("anomaly", &[&text])],
        choice: Some(Choice {
            model: Some("before".into()),
            path: vec!["memory_mib > 500".into()],
            options: vec![option("restart"), option("scale_up")],
            context: BTreeMap::from([("memory_mib".to_owned(), json!(memory)), ("rps".to_owned(), json!(rps))]),
            ..Choice::default()
        }),
    };
    let verdict = VerdictRecord {
        action_id: id::derived("action", &[&text]),
        incident_id: decision.incident_id,
        target_key: key,
        verdict: if taken == right {
            Verdict::Recovered
        } else {
            Verdict::Unchanged
        },
        from: decision.decided_at,
        to: decision.decided_at + 60_000,
        score_before: 2.5,
        score_after: Some(if taken == right { 0.2 } else { 2.6 }),
        reason: "the signal said so".into(),
    };
    (decision, verdict)
}

#[test]
fn a_model_is_promoted_on_evidence_listed_and_rolled_back() -> anyhow::Result<()> {
    let desk = Desk::new("models")?;
    desk.train("good.json", "scale_up", "restart")?;
    desk.train("bad.json", "restart", "scale_up")?;
    ensure!(desk.versions()?.is_empty(), "nothing was promoted yet");
    let tenant = desk.0.tenant.clone();

    // Without a record nobody can tell, and what cannot be told changes nothing.
    let none = desk.homeostat(&["model", "promote", "good.json", "--policy", "shop.heal"])?;
    none.is(2, "insufficient evidence: no decision with a clear verdict")
        .is(2, "--force with --reason");
    desk.record((0..20).map(|number| decided(&tenant, number)))?;
    let little = desk.homeostat(&["model", "promote", "good.json", "--policy", "shop.heal"])?;
    little
        .is(2, "insufficient evidence: the estimate rests on")
        .is(2, "20 decisions on record");
    ensure!(desk.versions()?.is_empty());

    desk.record((20..900).map(|number| decided(&tenant, number)))?;
    let worse = desk.homeostat(&["model", "promote", "bad.json", "--policy", "shop.heal"])?;
    worse.is(2, "worse than what runs: at best");
    let dry = desk.homeostat(&["model", "promote", "good.json", "--policy", "shop.heal", "--dry-run"])?;
    for estimate in ["ips", "snips", "dr", "what runs"] {
        dry.is(0, estimate);
    }
    ensure!(desk.versions()?.is_empty(), "a dry run and a refusal change nothing");
    desk.homeostat(&["model", "promote", "good.json", "--policy", "shop.heal"])?
        .is(0, "chooses for shop.heal");
    let forced = [
        "model",
        "promote",
        "bad.json",
        "--policy",
        "shop.heal",
        "--force",
        "--reason",
        "drill",
    ];
    desk.homeostat(&forced)?.is(0, "put in force all the same");
    let versions = desk.versions()?;
    assert_eq!(versions.len(), 2, "{versions:?}");
    desk.homeostat(&["model", "list"])?
        .is(0, "shop.heal")
        .is(0, "by ada drill");

    let [bad, good] = versions.try_into().expect("two");
    desk.homeostat(&["model", "rollback", "--policy", "shop.heal"])?
        .is(0, &good.1);
    assert_eq!(desk.versions()?, [good.clone(), bad, good]);
    let controls = desk.0.read("control")?;
    assert_eq!(controls.len(), 3, "each is a record that fits its schema");
    Ok(())
}

#[test]
fn what_is_no_model_or_has_none_before_it_is_refused_with_the_fix() -> anyhow::Result<()> {
    let desk = Desk::new("refusals")?;
    desk.train("good.json", "scale_up", "restart")?;
    desk.write("text.json", "hello")?;
    desk.write("other.json", "{\"format\": 99}")?;
    let cases: [(&[&str], &str); 7] = [
        (&["model", "promote", "missing.json"], "missing.json"),
        (
            &["model", "promote", "text.json"],
            "a model is a file that `homeostat train` wrote",
        ),
        (&["model", "promote", "other.json"], "other.json"),
        (
            &["model", "promote", "good.json", "--force"],
            "--force without --reason",
        ),
        (
            &["model", "rollback"],
            "the record has no model of * before the one in force",
        ),
        (&["model", "promote"], "required"),
        (&["model", "demote"], "unrecognized subcommand"),
    ];
    for (arguments, said) in cases {
        desk.homeostat(arguments)?.is(2, said);
    }
    // One model alone has none before it.
    desk.homeostat(&["model", "promote", "good.json", "--force", "--reason", "first"])?
        .is(0, "chooses for *");
    desk.homeostat(&["model", "rollback"])?.is(2, "no model of * before");
    assert_eq!(desk.0.read("control")?.len(), 1);
    Ok(())
}

#[test]
fn a_decision_is_explained_by_any_of_its_ids() -> anyhow::Result<()> {
    let desk = Desk::new("explained")?;
    let tenant = desk.0.tenant.clone();
    desk.record((0..3).map(|number| decided(&tenant, number)))?;
    let (decision, verdict) = decided(&tenant, 1);
    let action = verdict.action_id.to_string();
    for id in [
        decision.decision_id.to_string(),
        decision.incident_id.to_string(),
        action[..12].to_owned(),
    ] {
        let told = desk.homeostat(&["explain-decision", &id])?;
        for said in [
            "restart cart",
            "policy shop.heal on detector slow, score 2.500",
            "evidence: anomaly",
            "gate cooldown: passed (used=0)",
            "because memory_mib > 500",
            "option scale_up: expected to heal 0.50, chosen with probability 0.500",
            "came of it: unchanged, expected with 0.50; score 2.500 before, 2.600 after",
        ] {
            told.is(0, said);
        }
        assert_eq!(told.out.matches("decision ").count(), 1, "{}", told.out);
    }
    let told = desk.homeostat(&["explain-decision", &action, "--output", "json"])?;
    let record: Value = serde_json::from_str(&told.out)?;
    assert_eq!(record["decision"], serde_json::to_value(&decision)?);
    assert_eq!(record["verdict"], serde_json::to_value(&verdict)?);
    for id in ["ffffffff-0000", "nonsense", ""] {
        desk.homeostat(&["explain-decision", id])?
            .is(2, "no decision with an id that begins with");
    }
    desk.write("past.jsonl", "{\"topic\":1}\n")?;
    desk.homeostat(&["explain-decision", &action, "--input", "past.jsonl"])?
        .is(2, "past.jsonl: line 1");
    desk.homeostat(&["explain-decision", &action, "--input", "missing.jsonl"])?
        .is(2, "missing.jsonl");
    Ok(())
}

#[test]
fn a_command_is_taken_back_by_the_beginning_of_its_id() -> anyhow::Result<()> {
    let desk = Desk::new("cancelled")?;
    let tenant = desk.0.tenant.clone();
    desk.record((0..3).map(|number| decided(&tenant, number)))?;
    let action = decided(&tenant, 1).1.action_id.to_string();
    desk.homeostat(&["cancel", "ffffffff-0000"])?
        .is(2, "no decision on record");
    desk.homeostat(&["cancel", ""])?.is(2, "3 actions begin with");
    ensure!(desk.0.read("control")?.is_empty(), "nothing was said");
    desk.homeostat(&["cancel", &action[..13], "--reason", "deploy under way"])?
        .is(0, &format!("cancelled: action {action}"));
    let said = desk.0.read("control")?;
    assert_eq!(said[0].key.as_deref(), Some(format!("cancel/{action}").as_str()));
    let data = said[0].json();
    assert_eq!((&data["control"], &data["by"]), (&json!("cancel"), &json!("ada")));
    // What was said once about one command is no state of the fleet.
    desk.0.create("incidents", 1, true)?;
    let status = desk.homeostat(&["status"])?;
    status.is(0, "0 open incidents");
    ensure!(!status.out.contains("control cancel"), "{}", status.out);
    Ok(())
}

#[test]
fn keys_are_made_shown_and_rotated_and_never_overwritten() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let keys = |arguments: &[&str]| {
        let all: Vec<&str> = std::iter::once("keys").chain(arguments.iter().copied()).collect();
        run("homeostat", folder.path(), &[], &all)
    };
    let file = ["--key-file", "signing.pem"];
    let made = keys(&["generate", file[0], file[1]])?;
    made.is(0, "[signing]\nkey_file = \"signing.pem\"")
        .is(0, "[[trust]]\nkey_file = \"signing.pub.pem\"");
    let old = Signer::from_pem(&fs::read_to_string(at("signing.pem"))?)?;
    assert_eq!(fs::metadata(at("signing.pem"))?.permissions().mode() & 0o777, 0o600);
    assert_eq!(
        TrustedKey::from_pem(&fs::read_to_string(at("signing.pub.pem"))?)?.id(),
        old.id()
    );
    assert_eq!(keys(&["public", file[0], file[1]])?.is(0, "").out, old.public_pem());

    let before = fs::read(at("signing.pem"))?;
    keys(&["generate", file[0], file[1]])?.is(2, "keys are never overwritten");
    keys(&["rotate", "--activate", file[0], file[1]])?.is(2, "there is no next key signing.next.pem");
    assert_eq!(fs::read(at("signing.pem"))?, before);
    keys(&["public", "--key-file", "missing.pem"])?.is(2, "`homeostat keys generate --key-file FILE` makes one");
    keys(&["public", "--key-file", "signing.pub.pem"])?.is(2, "signing.pub.pem is a public key");
    fs::write(at("text.pem"), "hello")?;
    keys(&["public", "--key-file", "text.pem"])?.is(2, "is no Ed25519 private key");

    let prepared = keys(&["rotate", "--overlap", "1h", file[0], file[1]])?;
    let next = Signer::from_pem(&fs::read_to_string(at("signing.next.pem"))?)?;
    prepared
        .is(0, "not_after")
        .is(0, "not_before")
        .is(0, next.id())
        .is(0, old.id());
    assert_eq!(
        fs::read(at("signing.pem"))?,
        before,
        "preparing changes nothing that signs"
    );
    keys(&["rotate", file[0], file[1]])?.is(2, "keys are never overwritten");

    // What was printed is a trust list that an executor takes.
    let entries = prepared.out.lines().skip_while(|line| *line != "[[trust]]");
    let entries: Vec<&str> = entries.take_while(|line| !line.starts_with("2. ")).collect();
    let check = |text: &str| {
        fs::write(
            at("executor.toml"),
            format!("{text}\n[ledger]\npath = {:?}\n", at("ledger.redb")),
        )?;
        run(
            "homeostat-executor",
            folder.path(),
            &[],
            &["--config", "executor.toml", "--check"],
        )
    };
    check(&entries.join("\n"))?.is(0, "the configuration is valid");
    check("require_signature = true")?.is(2, "needs a [[trust]] entry");
    check("[[trust]]\nkey_file = \"signing.pem\"")?.is(2, "the public one belongs here");
    check("[[trust]]\nkey_file = \"signing.pub.pem\"\nnot_befor = \"x\"")?.is(2, "not_before");

    keys(&["rotate", "--activate", file[0], file[1]])?.is(0, next.id());
    assert_eq!(fs::read_to_string(at("signing.pem"))?, next.private_pem());
    let retired = at(&format!("signing.{}.retired.pem", old.id()));
    assert_eq!(fs::read(&retired)?, before);
    assert_eq!(fs::metadata(at("signing.pem"))?.permissions().mode() & 0o777, 0o600);

    // A processor whose key cannot be read does not start, and says how to make one.
    fs::create_dir_all(at("pipelines/shop"))?;
    fs::copy(
        crate::programs::root().join("pipelines/starter/pipeline.sql"),
        at("pipelines/shop/pipeline.sql"),
    )?;
    let environment = [
        ("HOMEOSTAT__SIGNING__KEY_FILE", "missing.pem"),
        ("KAFKA_BOOTSTRAP", "127.0.0.1:1"),
    ];
    run("homeostat", folder.path(), &environment, &["run"])?.is(2, "key file missing.pem");
    Ok(())
}
