//! What operators type, as programs on a real Kafka: models, explanations, withdrawals, keys; with what is right and what is wrong.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
};

use anyhow::ensure;
use kafka::ProducerConfig;
use protocol::{
    CloudEvent, Output, Target, cloudevent, id,
    message::{
        ActionBody, Anomaly, ApprovalRecord, Choice, ChoiceOption, Decision, DecisionKind, Gate, Mode, Verdict,
        VerdictRecord,
    },
    signature::{Signer, TrustedKey},
};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    fleet::{Fleet, Published},
    programs::{program, root},
};

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

    fn event(&self, kind: &str, topic: &str, event_id: Uuid, target: &str, data: &impl serde::Serialize) -> Output {
        let event = CloudEvent::new(event_id, &self.0.tenant, "/homeostat/test", kind, target, 1);
        event.output(self.0.topic(topic), data)
    }

    fn publish(&self, outputs: impl IntoIterator<Item = Output>) -> anyhow::Result<()> {
        let mut producer = self.0.broker.producer(&ProducerConfig::new("test"))?;
        for output in outputs {
            producer.send(&output)?;
        }
        Ok(producer.flush()?)
    }

    fn decision(&self, decision: &Decision) -> Output {
        let key = &decision.target_key;
        self.event(cloudevent::DECISION, "decisions", decision.decision_id, key, decision)
    }

    fn verdict(&self, verdict: &VerdictRecord) -> Output {
        let event_id = id::derived("verdict", &[&verdict.action_id.to_string()]);
        self.event(cloudevent::VERDICT, "outcomes", event_id, &verdict.target_key, verdict)
    }

    /// Decisions that were drawn half and half, and healed where the action was right.
    fn record(&self, decisions: impl IntoIterator<Item = (Decision, VerdictRecord)>) -> anyhow::Result<()> {
        let outputs = decisions.into_iter();
        self.publish(outputs.flat_map(|(decision, verdict)| [self.decision(&decision), self.verdict(&verdict)]))
    }

    /// What stands on `control`, in the order in which it was said: scope and data, null where it was withdrawn.
    fn said(&self) -> anyhow::Result<Vec<(String, Value)>> {
        let scope = |record: Published| (record.key.clone().unwrap_or_default(), record.json());
        Ok(self.0.read("control")?.into_iter().map(scope).collect())
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
    let anomaly = Anomaly {
        target: BTreeMap::from([("service".to_owned(), json!("cart"))]),
        pipeline: "shop".into(),
        detector: "slow".into(),
        window_start: 1_700_000_000_000,
        window_end: 1_700_000_060_000,
        score: 2.5,
        is_anomaly: true,
        features: BTreeMap::from([("p99_ms".to_owned(), Some(812.0)), ("rps".to_owned(), Some(40.0))]),
        contributions: BTreeMap::from([("p99_ms".to_owned(), 2.4)]),
        columns: BTreeMap::new(),
        meets: vec!["heal".into()],
        clears: Vec::new(),
        telemetry_healthy: true,
    };
    let key = &decision.target_key;
    desk.publish([desk.event(cloudevent::ANOMALY, "anomalies", decision.evidence[0], key, &anomaly)])?;
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
            "window 2023-11-14T22:13:20.000Z to 2023-11-14T22:14:20.000Z, score 2.500, p99_ms=812 rps=40",
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
    assert_eq!(record["evidence"], json!([anomaly]));
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
fn a_model_is_retrained_from_verdicts_and_judged_by_those_it_did_not_learn_from() -> anyhow::Result<()> {
    let desk = Desk::new("retrained")?;
    let tenant = desk.0.tenant.clone();
    let retrain = |more: &[&str]| {
        let command = ["model", "retrain", "--policy", "shop.heal"];
        desk.homeostat(&[command.as_slice(), more].concat())
    };
    retrain(&[])?.is(2, "insufficient evidence: there are no incidents to learn from");
    desk.record((0..40).map(|number| decided(&tenant, number)))?;
    // Decisions of another policy teach this one nothing.
    let other = |number| {
        let (mut decision, mut verdict) = decided(&tenant, number);
        (decision.policy, verdict.verdict) = ("other".into(), Verdict::Unchanged);
        (decision, verdict)
    };
    desk.record((2_000..3_000).map(other))?;
    retrain(&[])?
        .is(2, "10 incidents on record to learn from")
        .is(2, "insufficient evidence: the estimate rests on")
        .is(2, "the model in force stays");
    ensure!(desk.versions()?.is_empty());

    desk.record((40..1_200).map(|number| decided(&tenant, number)))?;
    let dry = retrain(&["--dry-run"])?;
    for said in [
        "300 incidents on record to learn from",
        "600 decisions on record",
        "ips",
        "snips",
        "dr",
    ] {
        dry.is(0, said);
    }
    ensure!(desk.versions()?.is_empty(), "a dry run changes nothing");
    retrain(&[])?.is(0, "chooses for shop.heal");
    ensure!(desk.versions()?.len() == 1);
    retrain(&[])?.is(0, "chooses for shop.heal already");
    ensure!(desk.versions()?.len() == 1, "the same model is not put in force twice");

    // What people know of the past is learned from as well, and one command takes the model back.
    let mut table = String::from("incident,label,memory_mib,rps\n");
    (0..60).for_each(|row| table.push_str(&format!("p-{row},rollback,{},{}\n", 500 + row, 10_000 + row)));
    desk.write("past.csv", &table)?;
    retrain(&["--past", "past.csv"])?.is(0, "chooses for shop.heal");
    retrain(&["--past", "missing.csv"])?.is(2, "missing.csv");
    let versions = desk.versions()?;
    ensure!(versions.len() == 2 && versions[0].1 != versions[1].1, "{versions:?}");
    desk.homeostat(&["model", "rollback", "--policy", "shop.heal"])?
        .is(0, &versions[1].1);

    // Beside the fleet it learns again and again, until it is told to stop.
    let mut beside = program("homeostat")
        .args([
            "model",
            "retrain",
            "--policy",
            "shop.heal",
            "--every",
            "1s",
            "--config",
            "homeostat.toml",
        ])
        .env("KAFKA_BOOTSTRAP", &desk.0.bootstrap)
        .current_dir(desk.0.folder.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(beside.stdout.take().expect("it is piped")).lines();
    let turns = lines
        .by_ref()
        .filter(|line| line.as_ref().is_ok_and(|line| line.ends_with("already")));
    assert_eq!(turns.take(2).count(), 2);
    rustix::process::kill_process(
        Pid::from_raw(beside.id() as i32).expect("a child has a pid"),
        Signal::TERM,
    )?;
    ensure!(beside.wait()?.success());
    Ok(())
}

#[test]
fn what_a_person_says_of_the_fleet_stands_on_control_and_is_taken_back() -> anyhow::Result<()> {
    let desk = Desk::new("control")?;
    let said: [(&[&str], &str, &str, Value); 9] = [
        (
            &["pause", "--reason", "drill"],
            "paused",
            "kill_switch",
            json!({"engaged": true, "reason": "drill"}),
        ),
        (&["resume"], "resumed", "kill_switch", json!({"engaged": false})),
        (
            &["mode", "approve", "--service", "cart", "--action", "restart"],
            "mode of restart on cart is at most approve",
            "mode/cart/restart",
            json!({"mode": "approve"}),
        ),
        (
            &["maintenance", "--service", "cart", "--for", "30m"],
            "maintenance of cart until",
            "maintenance/cart",
            json!({}),
        ),
        (
            &["protect", "billing*"],
            "nothing acts on billing*",
            "protected/billing*",
            json!({"service": "billing*"}),
        ),
        (
            &["reset", "cart"],
            "breakers of cart are closed",
            "reset/cart",
            json!({"service": "cart"}),
        ),
        (
            &["approver", "bob", "--revoke", "--reason", "lost his laptop"],
            "revoked: no answer of bob counts",
            "approver/bob",
            json!({"revoked": true, "reason": "lost his laptop"}),
        ),
        (
            &["approver", "bob", "--restore"],
            "restored: answers of bob count",
            "approver/bob",
            json!({"revoked": false}),
        ),
        (
            &[
                "thresholds",
                "breaker_failures=5",
                "verify_for=5m",
                "approval_roles=[\"sre\"]",
                "--service",
                "cart",
            ],
            "* on cart:",
            "thresholds/cart/*",
            json!({"set": {"breaker_failures": 5, "verify_for": "5m", "approval_roles": ["sre"]}}),
        ),
    ];
    for (arguments, answer, scope, data) in said {
        desk.homeostat(arguments)?.is(0, answer);
        let (at, record) = desk.said()?.pop().expect("it was said");
        assert_eq!((at.as_str(), &record["by"]), (scope, &json!("ada")));
        for (name, value) in data.as_object().expect("an object") {
            assert_eq!(&record[name], value, "{record}");
        }
    }
    let before = desk.said()?.len();
    let refused: [(&[&str], &str); 9] = [
        (&["thresholds", "breaker_failure=5"], "unknown field `breaker_failure`"),
        (&["thresholds", "verify_for=soon"], "\"soon\" is no duration"),
        (
            &["thresholds", "tenant=other"],
            "tenant belongs to the fleet as a whole",
        ),
        (&["thresholds", "verify_for"], "a threshold is KEY=VALUE"),
        (&["thresholds"], "required"),
        (&["approver", "bob"], "required"),
        (&["approver", "bob", "--revoke", "--restore"], "cannot be used with"),
        (&["mode", "careful"], "one of off, shadow, approve, auto"),
        (&["mode"], "required"),
    ];
    for (arguments, why) in refused {
        desk.homeostat(arguments)?.is(2, why);
    }
    assert_eq!(desk.said()?.len(), before, "what is refused is not said");
    desk.0.create("incidents", 1, true)?;
    desk.homeostat(&["status"])?
        .is(0, "control protected/billing*")
        .is(0, "control thresholds/cart/*");
    let withdrawn: [(&[&str], &str); 3] = [
        (&["protect", "billing*", "--withdraw"], "protected/billing*"),
        (&["thresholds", "--service", "cart", "--withdraw"], "thresholds/cart/*"),
        (
            &["mode", "--service", "cart", "--action", "restart", "--withdraw"],
            "mode/cart/restart",
        ),
    ];
    for (arguments, scope) in withdrawn {
        desk.homeostat(arguments)?.is(0, "withdrawn");
        assert_eq!(desk.said()?.pop(), Some((scope.to_owned(), Value::Null)));
        let status = desk.homeostat(&["status"])?;
        ensure!(!status.out.contains(&format!("control {scope}")), "{}", status.out);
    }
    Ok(())
}

#[test]
fn modes_are_suggested_from_the_record_and_never_set() -> anyhow::Result<()> {
    let desk = Desk::new("suggested")?;
    let tenant = desk.0.tenant.clone();
    desk.homeostat(&["suggest"])?
        .is(0, "nothing to suggest from 0 decisions and 0 verdicts");
    let decide = |number: usize, service: &str, mode: Mode, kind: DecisionKind| {
        let (decision, verdict) = decided(&tenant, number * 4);
        let (target_key, text) = (Target::service(&tenant, service).key(), format!("{service}{number}"));
        let decision = Decision {
            decision_id: id::derived("decision", &[&text, &format!("{kind:?}")]),
            incident_id: id::derived("incident", &[&text]),
            action_id: Some(id::derived("action", &[&text])),
            target_key: target_key.clone(),
            mode,
            verdict: kind,
            ..decision
        };
        let verdict = VerdictRecord {
            action_id: id::derived("action", &[&text]),
            verdict: if service == "db" {
                Verdict::Unchanged
            } else {
                Verdict::Recovered
            },
            target_key,
            ..verdict
        };
        (decision, verdict)
    };
    let mut outputs = Vec::new();
    for number in 0..30 {
        if number < 10 {
            let (would, _) = decide(number, "cart", Mode::Shadow, DecisionKind::Shadow);
            outputs.push(desk.decision(&would));
        }
        for service in ["mail", "billing"] {
            let (asked, _) = decide(number, service, Mode::Approve, DecisionKind::AskApproval);
            let (acted, verdict) = decide(number, service, Mode::Approve, DecisionKind::Act);
            outputs.extend([desk.decision(&asked), desk.decision(&acted), desk.verdict(&verdict)]);
        }
        let (acted, verdict) = decide(number, "db", Mode::Auto, DecisionKind::Act);
        outputs.extend([desk.decision(&acted), desk.verdict(&verdict)]);
    }
    desk.publish(outputs)?;
    // Somebody once said no to a restart of billing.
    let (asked, _) = decide(7, "billing", Mode::Approve, DecisionKind::AskApproval);
    let denied = ApprovalRecord {
        approval_id: id::derived("approval", &["billing"]),
        action_id: asked.action_id.expect("it was asked about an action"),
        incident_id: asked.incident_id,
        target_key: asked.target_key.clone(),
        payload_sha256: "0".repeat(64),
        requested_at: 1,
        expires_at: 2,
        by: Some("bob".into()),
        reason: None,
        action: None,
    };
    desk.publish([desk.event(
        cloudevent::APPROVAL_DENIED,
        "approvals",
        id::derived("denied", &[]),
        &asked.target_key,
        &denied,
    )])?;
    let told = desk.homeostat(&["suggest"])?;
    for said in [
        "restart on cart: shadow -> approve: it would have acted in 10 incidents",
        "homeostat mode approve --service cart --action restart",
        "restart on mail: approve -> auto: granted 30 times and never denied; healed 30 of 30 (0.89-1.00)",
        "homeostat mode auto --service mail --action restart",
        "restart on db: auto -> approve: healed 0 of 30 (0.00-0.11)",
    ] {
        told.is(0, said);
    }
    ensure!(!told.out.contains("billing"), "{}", told.out);
    let json = desk.homeostat(&["suggest", "--output", "json"])?;
    assert_eq!(json.is(0, "\"to\":\"auto\"").out.lines().count(), 3);
    ensure!(desk.said()?.is_empty(), "a suggestion is a person's to follow");
    Ok(())
}

#[test]
fn two_sets_of_policies_are_tried_on_one_past() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| fs::write(at(name), text);
    let shipped = fs::read_to_string(root().join("pipelines/starter/pipeline.sql"))?;
    let loose = shipped.replace("MODE SHADOW", "MODE AUTO");
    let strict = loose.replace("LIMIT 3 ACTIONS", "LIMIT 1 ACTIONS");
    ensure!(shipped != loose && loose != strict);
    for (name, text) in [("loose", &loose), ("strict", &strict)] {
        fs::create_dir_all(at(name))?;
        write(&format!("{name}/starter.sql"), text)?;
    }
    write("homeostat.toml", "[decide]\nstartup_grace = \"1s\"\n")?;
    write("past.jsonl", &fallen_silent()?)?;
    let backtest = |more: &[&str]| {
        let command = [
            "backtest",
            "--config",
            "homeostat.toml",
            "--input",
            "past.jsonl",
            "--policy",
            "loose/starter.sql",
        ];
        run("homeostat", folder.path(), &[], &[command.as_slice(), more].concat())
    };
    let both = ["--policy", "strict/starter.sql", "--mode", "auto"];
    let told = backtest(&both)?;
    let line = |second: i64, service: &str| {
        let at = protocol::time::to_rfc3339(second * 1_000);
        format!("  {at} restart on {service} by starter.restart_quiet\n")
    };
    let (checkout, payment) = (line(135, "checkout"), line(435, "payment"));
    told.is(0, "1 passed over")
        .is(
            0,
            &format!("loose/starter.sql: 2 incidents, 2 actions\n{checkout}{payment}"),
        )
        .is(0, &format!("strict/starter.sql: 2 incidents, 1 actions\n{checkout}"))
        .is(0, "  refused by hold_down: 2\n")
        .is(0, "  refused by limit: 1\n")
        .is(0, "  restart: healed 8 of 10 in the past, 0.80 (0.49 to 0.94)\n")
        .is(0, "  expected to heal: 0.80 of the actions (0.49 to 0.94)\n")
        .is(
            0,
            &format!("both fire: 1\nonly the first: 1\n{payment}only the second: 0\n"),
        )
        .is(0, "refused by limit: 0 by the first, 1 by the second\n");
    // Without --mode the fleet's own counts: nobody has set one, so it is shadow.
    backtest(&[])?.is(0, "by starter.restart_quiet (in shadow)");
    let until = [both.as_slice(), &["--to", "1970-01-01T00:05:00Z", "--output", "json"]].concat();
    let half: Value = serde_json::from_str(&backtest(&until)?.out)?;
    for report in half["reports"].as_array().expect("two reports") {
        assert_eq!(report["fired"].as_array().map(Vec::len), Some(1), "{report}");
    }
    let from = [both.as_slice(), &["--from", "1970-01-01T00:05:00Z"]].concat();
    backtest(&from)?.is(0, "loose/starter.sql: 1 incidents, 1 actions");
    // What was saved says the same.
    let saved = backtest(&[both.as_slice(), &["--save", "again.jsonl"]].concat())?;
    let again = [both.as_slice(), &["--input", "again.jsonl"]].concat();
    let again = run(
        "homeostat",
        folder.path(),
        &[],
        &[
            [
                "backtest",
                "--config",
                "homeostat.toml",
                "--policy",
                "loose/starter.sql",
            ]
            .as_slice(),
            &again,
        ]
        .concat(),
    )?;
    assert_eq!(again.out, saved.out);
    backtest(&["--policy", "a", "--policy", "b"])?.is(2, "more than two sets of policies");
    backtest(&["--policy", "missing.sql"])?.is(2, "missing.sql");
    backtest(&["--from", "yesterday"])?.is(2, "a time like");
    Ok(())
}

/// A fleet of twenty: checkout falls silent at two minutes, payment at seven; and ten restarts of the past, of which eight healed.
fn fallen_silent() -> anyhow::Result<String> {
    let mut lines = String::new();
    let mut line = |topic: &str, second: i64, headers: Value, value: Value| {
        let line = json!({"topic": topic, "timestamp_ms": second * 1_000, "headers": headers, "value": value});
        lines.push_str(&format!("{line}\n"));
    };
    for number in 0..10 {
        let (decision, mut verdict) = decided("homeostat", number * 4);
        if number < 2 {
            verdict.verdict = Verdict::Unchanged;
        }
        line(
            "decisions",
            0,
            json!({"ce_type": cloudevent::DECISION}),
            serde_json::to_value(decision)?,
        );
        line(
            "outcomes",
            0,
            json!({"ce_type": cloudevent::VERDICT}),
            serde_json::to_value(verdict)?,
        );
    }
    line(
        "anomalies",
        0,
        json!({"ce_type": "dev.homeostat.unheard.v1"}),
        json!({}),
    );
    for second in 0..600 {
        let stamp = protocol::time::to_rfc3339(second * 1_000);
        let progress = json!({"watermark_ms": second * 1_000, "clock": stamp, "partition": 0, "population": {"starter.quiet": 20}});
        line("anomalies", second, json!({"ce_type": cloudevent::PROGRESS}), progress);
        let fallen = [(120, "checkout"), (420, "payment")]
            .into_iter()
            .find(|(at, _)| *at == second);
        if let Some((_, service)) = fallen {
            let key = Target::service("homeostat", service).key();
            let event_id = id::derived("anomaly", &[service]);
            let event = CloudEvent::new(event_id, "homeostat", "/t", cloudevent::ANOMALY, &key, second * 1_000);
            let headers = event.headers().into_iter();
            let headers = headers.map(|(name, value)| Ok((name, Value::from(String::from_utf8(value)?))));
            let headers = headers.collect::<anyhow::Result<serde_json::Map<_, _>>>()?;
            let anomaly = json!({
                "target": {"service": service}, "pipeline": "starter", "detector": "quiet",
                "window_start": protocol::time::to_rfc3339((second - 30) * 1_000), "window_end": stamp, "score": 1.5,
                "is_anomaly": true, "features": {}, "contributions": {}, "meets": ["restart_quiet"],
            });
            line("anomalies", second, headers.into(), anomaly);
        }
    }
    Ok(lines)
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
        root().join("pipelines/starter/pipeline.sql"),
        at("pipelines/shop/pipeline.sql"),
    )?;
    let environment = [
        ("HOMEOSTAT__SIGNING__KEY_FILE", "missing.pem"),
        ("KAFKA_BOOTSTRAP", "127.0.0.1:1"),
    ];
    run("homeostat", folder.path(), &environment, &["run"])?.is(2, "key file missing.pem");
    Ok(())
}
