use protocol::message::{Action, ActionBody, ActionTarget, Anomaly, Approval, Explain, Ladder, Timing, VerdictRecord};
use protocol::{Target, id};

use super::*;
use crate::demo::observe::Place;

fn seen(what: What) -> Seen {
    Seen {
        place: Place {
            topic: "t".into(),
            partition: 0,
            offset: 0,
        },
        what,
    }
}

fn beat(service: &str, pid: u32) -> Seen {
    seen(What::Heartbeat {
        service: service.into(),
        pid,
    })
}

fn alarm(service: &str) -> Seen {
    let anomaly = Anomaly {
        target: BTreeMap::new(),
        pipeline: "shop".into(),
        detector: "quiet".into(),
        window_start: 0,
        window_end: 1000,
        score: 1.5,
        is_anomaly: true,
        features: BTreeMap::new(),
        contributions: BTreeMap::new(),
        columns: BTreeMap::new(),
        meets: Vec::new(),
        clears: Vec::new(),
        telemetry_healthy: true,
    };
    seen(What::Anomaly {
        service: service.into(),
        anomaly: Box::new(anomaly),
    })
}

fn number(n: u32) -> Uuid {
    id::derived("test", &[&n.to_string()])
}

fn command(service: &str, n: u32) -> Seen {
    let target = Target::service("homeostat", service);
    let action = Action {
        action_id: number(n),
        incident_id: number(1000),
        decision_id: number(2000),
        attempt: 1,
        ladder: Ladder {
            step: 1,
            of: 1,
            policy: "p".into(),
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
            decided_at: 0,
            start_deadline: 0,
            exec_timeout_ms: 0,
            verify_after_ms: 0,
            verify_for_ms: 0,
        },
        mode: "live".into(),
        approval: Approval {
            required: false,
            state: "none".into(),
            id: None,
        },
        explain: Explain {
            policy: "p".into(),
            detector: "quiet".into(),
            pipeline: "shop".into(),
            score: 1.5,
            evidence: Vec::new(),
            gates: Vec::new(),
        },
    };
    seen(What::Command {
        service: service.into(),
        action: Box::new(action),
    })
}

fn verdict(service: &str, n: u32, verdict: Verdict) -> Seen {
    let verdict = VerdictRecord {
        action_id: number(n),
        incident_id: number(1000),
        target_key: String::new(),
        verdict,
        from: 0,
        to: 0,
        score_before: 1.5,
        score_after: None,
        reason: String::new(),
    };
    seen(What::Verdict {
        service: service.into(),
        verdict,
    })
}

/// A watch in which `cart`, process 10, broke at 5 s.
fn broken() -> (Watch, usize) {
    let mut watch = Watch::default();
    watch.see(&beat("cart", 10), 4000);
    let index = watch.inject(Fault::Crash, "cart", 10, 5000);
    (watch, index)
}

#[test]
fn a_fault_heals_by_verdict_and_new_process_both() {
    let (mut watch, index) = broken();
    assert_eq!(watch.see(&alarm("cart"), 8000), Some(index));
    watch.see(&alarm("cart"), 8500);
    watch.see(&command("cart", 1), 9000);
    watch.see(&verdict("cart", 1, Verdict::Recovered), 12_000);
    assert!(
        !watch.settle(index, Some(11), 12_000),
        "nobody has heard of the new process"
    );
    watch.see(&beat("cart", 11), 12_100);
    assert!(!watch.settle(index, None, 12_100), "the process table does not have it");
    assert!(watch.settle(index, Some(11), 12_200));
    let fault = &watch.faults()[index];
    assert_eq!(
        (fault.detected_ms, fault.healed_ms, fault.actions),
        (Some(3000), Some(7200), 1)
    );
    assert_eq!((fault.pid_before, fault.pid_after), (10, Some(11)));
    assert_eq!(watch.false_actions(), 0);
}

#[test]
fn the_executors_word_and_other_verdicts_do_not_heal() {
    let (mut watch, index) = broken();
    watch.see(&command("cart", 1), 9000);
    watch.see(&beat("cart", 11), 10_000);
    for other in [
        Verdict::Unchanged,
        Verdict::Improved,
        Verdict::Inconclusive,
        Verdict::Worse,
    ] {
        watch.see(&verdict("cart", 1, other), 11_000);
        assert!(!watch.settle(index, Some(11), 11_000), "{other:?}");
    }
}

#[test]
fn a_heartbeat_of_the_broken_process_heals_nothing() {
    let (mut watch, index) = broken();
    watch.see(&command("cart", 1), 9000);
    watch.see(&verdict("cart", 1, Verdict::Recovered), 11_000);
    watch.see(&beat("cart", 10), 11_000);
    assert!(!watch.settle(index, Some(10), 11_000));
}

#[test]
fn commands_for_services_without_an_open_fault_are_false() {
    let (mut watch, index) = broken();
    watch.see(&command("checkout", 1), 6000);
    watch.see(&command("checkout", 1), 6100);
    assert_eq!(watch.false_actions(), 1, "a repeated record is the same action");
    watch.see(&command("cart", 2), 9000);
    watch.see(&beat("cart", 11), 10_000);
    watch.see(&verdict("cart", 2, Verdict::Recovered), 11_000);
    assert!(watch.settle(index, Some(11), 11_000));
    watch.see(&command("cart", 3), 12_000);
    assert_eq!(watch.false_actions(), 2, "it had healed");
}

#[test]
fn a_verdict_on_a_false_action_heals_nothing() {
    let (mut watch, index) = broken();
    watch.see(&command("checkout", 1), 6000);
    watch.see(&beat("cart", 11), 10_000);
    watch.see(&verdict("checkout", 1, Verdict::Recovered), 9000);
    assert!(!watch.settle(index, Some(11), 11_000));
}

#[test]
fn ready_is_everybody_heard_and_time_moving() {
    let mut watch = Watch::default();
    watch.see(&beat("cart", 10), 0);
    assert!(!watch.ready(&["cart"]));
    watch.see(&seen(What::Progress { watermark_ms: None }), 0);
    assert!(!watch.ready(&["cart"]));
    watch.see(&seen(What::Progress { watermark_ms: Some(1) }), 0);
    assert!(watch.ready(&["cart"]));
    assert!(!watch.ready(&["cart", "payment"]));
}

mod report {
    use crate::demo::report::{Output, Report, summary};

    use super::*;

    fn lines(output: Output, write: impl FnOnce(&mut Report<&mut Vec<u8>>)) -> Vec<String> {
        let mut bytes = Vec::new();
        write(&mut Report::new(&mut bytes, output));
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_json_line_has_the_fixed_fields() {
        let (watch, _) = broken();
        let lines = lines(Output::Json, |report| {
            report.say(0, "not for programs").unwrap();
            report.fault(5000, Fault::Crash, "cart", 10).unwrap();
            report.seen(8000, Some(Fault::Crash), &beat("cart", 10)).unwrap();
            report.seen(8000, Some(Fault::Crash), &alarm("cart")).unwrap();
            report.seen(9000, Some(Fault::Crash), &command("cart", 1)).unwrap();
            report
                .seen(9500, None, &verdict("cart", 1, Verdict::Recovered))
                .unwrap();
            report.summary(10_000, &summary(&watch, 0)).unwrap();
        });
        let objects: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["fault", "anomaly", "command", "verdict", "summary"]);
        for object in &objects {
            for field in ["at_ms", "kind", "fault", "service"] {
                assert!(object.get(field).is_some(), "{field} in {object}");
            }
        }
        assert_eq!(objects[0]["pid"], 10);
        assert_eq!(objects[1]["offset"], 0);
        assert_eq!(objects[2]["action_id"], number(1).to_string());
        let last = &objects[4];
        assert_eq!(last["faults"][0]["fault"], "crash");
        assert_eq!(last["faults"][0]["healed_ms"], serde_json::Value::Null);
        assert_eq!((&last["false_actions"], &last["healed"]), (&0.into(), &false.into()));
    }

    #[test]
    fn people_read_an_alarm_once_and_a_table_at_the_end() {
        let (watch, _) = broken();
        let lines = lines(Output::Text, |report| {
            report.seen(8000, Some(Fault::Crash), &alarm("cart")).unwrap();
            report.seen(8500, Some(Fault::Crash), &alarm("cart")).unwrap();
            report.summary(10_000, &summary(&watch, 0)).unwrap();
        });
        assert_eq!(lines.iter().filter(|line| line.contains("anomaly")).count(), 1);
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("crash") && line.contains("never")),
            "{lines:?}"
        );
        assert_eq!(lines.last().unwrap(), "1 of 1 faults did not heal");
    }

    #[test]
    fn healed_means_all_kinds_healed_and_nothing_else_touched() {
        let mut watch = Watch::default();
        for (n, (fault, service)) in Fault::ALL
            .into_iter()
            .zip(["cart", "payment", "frontend", "shipping"])
            .enumerate()
        {
            let n = n as u32;
            let index = watch.inject(fault, service, n, 0);
            watch.see(&command(service, n), 0);
            watch.see(&verdict(service, n, Verdict::Recovered), 0);
            watch.see(&beat(service, n + 100), 0);
            assert!(watch.settle(index, Some(n + 100), 1));
            assert_eq!(summary(&watch, 0).healed(), n == 3);
        }
        assert!(!summary(&watch, 1).healed());
        let told = lines(Output::Text, |report| report.summary(1, &summary(&watch, 1)).unwrap());
        assert_eq!(
            told.last().unwrap(),
            "every fault healed, but an action had its effect twice"
        );
        watch.see(&command("inventory", 9), 5);
        assert!(!summary(&watch, 0).healed());
    }
}
