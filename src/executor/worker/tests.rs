use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use protocol::{
    Output, Topics,
    message::{Control, Executor, OutcomeStatus},
};
use serde_json::{Map, json};

use super::*;
use crate::{
    adapter::Effect,
    budget::{BreakerConfig, Rule},
    command::tests::{NOW_MS, action, command},
};

const OUTCOME_SCHEMA: &str = include_str!("../../../schemas/outcome.v1.json");

/// A world in which effects are counted and answers are set.
#[derive(Default)]
struct World {
    acts: AtomicUsize,
    reconciled: Mutex<Option<Reconciled>>,
    fails: Mutex<Option<Failure>>,
    unknown_target: bool,
    /// What the world looked like to each look, and to each later step.
    looks: AtomicUsize,
    looks_take_ms: i64,
    clock: Arc<AtomicI64>,
    told: Mutex<Vec<Option<Before>>>,
}

struct FakeAdapter(Arc<World>);

impl Adapter for FakeAdapter {
    fn knows(&self, _command: &Command) -> Result<(), Refusal> {
        if self.0.unknown_target {
            Err(Refusal::rejected(404, "unknown"))
        } else {
            Ok(())
        }
    }

    fn observe(&self, _command: &Command) -> Result<Before, Failure> {
        let look = self.0.looks.fetch_add(1, Ordering::SeqCst);
        self.0.clock.fetch_add(self.0.looks_take_ms, Ordering::SeqCst);
        Ok(Map::from_iter([("look".to_owned(), json!(look))]))
    }

    fn reconcile(&self, _command: &Command, before: Option<&Before>) -> Reconciled {
        self.0.told.lock().unwrap().push(before.cloned());
        self.0.reconciled.lock().unwrap().clone().unwrap_or(Reconciled::NotDone)
    }

    fn act(&self, _command: &Command, before: &Before) -> Result<Effect, Failure> {
        self.0.told.lock().unwrap().push(Some(before.clone()));
        self.0.acts.fetch_add(1, Ordering::SeqCst);
        match self.0.fails.lock().unwrap().clone() {
            Some(failure) => Err(failure),
            None => Ok(Map::from_iter([("pid_after".to_owned(), json!(5))])),
        }
    }
}

#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<Output>>>);

impl Reporter for Reports {
    fn announce(&self, output: Output) {
        self.0.lock().unwrap().push(output);
    }

    fn publish(&self, output: Output) -> Result<(), Error> {
        self.0.lock().unwrap().push(output);
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Controls(Arc<Mutex<Option<Arc<ControlView>>>>);

impl ControlSource for Controls {
    fn current(&self) -> Result<Option<Arc<ControlView>>, Error> {
        Ok(self.0.lock().unwrap().clone())
    }
}

struct Bench {
    _directory: tempfile::TempDir,
    world: Arc<World>,
    reports: Reports,
    controls: Controls,
    clock: Arc<AtomicI64>,
    worker: Worker,
}

impl Bench {
    fn new() -> Self {
        Self::over(World::default())
    }

    fn over(world: World) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (world, reports, controls) = (Arc::new(world), Reports::default(), Controls::default());
        *controls.0.lock().unwrap() = Some(Arc::default());
        let clock = Arc::clone(&world.clock);
        clock.store(NOW_MS, Ordering::SeqCst);
        let reading = Arc::clone(&clock);
        let adapter: Box<dyn Adapter> = Box::new(FakeAdapter(Arc::clone(&world)));
        let worker = Worker {
            identity: Identity {
                executor: Executor {
                    id: "local".into(),
                    version: "0".into(),
                },
                topics: Topics::new("homeostat."),
                tenant: "homeostat".into(),
                signer: None,
            },
            limits: Limits {
                skew_margin_ms: 1_000,
                age_ms_max: 600_000,
            },
            bounds: Bounds {
                budget: Vec::new(),
                breaker: BreakerConfig {
                    failures_max: 3,
                    open_ms: 10_000,
                },
            },
            allow: vec![Allow {
                action: "restart".into(),
                target: "*".into(),
                adapter: AdapterKind::Process,
                endpoint: None,
                params: BTreeMap::new(),
            }],
            unlisted: Unlisted::Reject,
            adapters: BTreeMap::from([((AdapterKind::Process, None), adapter)]),
            ledger: Ledger::open(&directory.path().join("ledger.redb"), Uuid::nil()).unwrap(),
            control: Box::new(controls.clone()),
            cancelled: Cancellations::default(),
            reporter: Box::new(reports.clone()),
            watch: Watch::none(),
            crash: Crash::default(),
            now_ms: Box::new(move || reading.load(Ordering::SeqCst)),
        };
        Self {
            _directory: directory,
            world,
            reports,
            controls,
            clock,
            worker,
        }
    }

    /// Carries the command out and returns what was reported, each checked against the schema and its envelope.
    fn carry_out(&self, command: &Command) -> Vec<(OutcomeStatus, u16)> {
        self.worker.carry_out(command).unwrap();
        self.reported()
    }

    fn reported(&self) -> Vec<(OutcomeStatus, u16)> {
        let schema = jsonschema::validator_for(&serde_json::from_str(OUTCOME_SCHEMA).unwrap()).unwrap();
        let outputs = std::mem::take(&mut *self.reports.0.lock().unwrap());
        let read = |output: &Output| {
            let value = output.value.as_deref().unwrap();
            schema.validate(&serde_json::from_slice(value).unwrap()).unwrap();
            let outcome: Outcome = serde_json::from_slice(value).unwrap();
            assert_eq!(&*output.topic, "homeostat.outcomes");
            let header = |name: &str| {
                let found = output.headers.iter().find(|(header, _)| header == name);
                String::from_utf8(found.unwrap().1.clone()).unwrap()
            };
            let status = outcome.status.as_str();
            let id = protocol::id::outcome(outcome.action_id, outcome.attempt, status);
            assert_eq!(header("ce_id"), id.to_string());
            assert_eq!(header("ce_type"), format!("dev.homeostat.outcome.{status}.v1"));
            assert_eq!(header("ce_correlationid"), outcome.incident_id.to_string());
            assert_eq!(
                header("ce_traceparent"),
                protocol::id::traceparent(outcome.incident_id, id)
            );
            assert_eq!(header("ce_subject").as_bytes(), output.key.as_deref().unwrap());
            (outcome.status, outcome.code)
        };
        outputs.iter().map(read).collect()
    }

    fn acts(&self) -> usize {
        self.world.acts.load(Ordering::SeqCst)
    }

    fn control(&self, control: &Control) {
        let mut view = ControlView::default();
        view.apply(control.scope().as_bytes(), Some(&serde_json::to_vec(control).unwrap()));
        *self.controls.0.lock().unwrap() = Some(Arc::new(view));
    }

    fn start(&self, command: &Command, entry: Entry, before: Before) {
        let starting = Starting {
            action: command.id(),
            kind: command.kind(),
            service: command.service(),
            lane: "restart by process",
            before,
        };
        let started = self.worker.ledger.start(starting, entry, &self.worker.bounds);
        started.unwrap().unwrap();
    }

    fn intend(&self, command: &Command) {
        let entry = self.worker.entry(command);
        self.worker.ledger.claim(command.id(), entry.clone()).unwrap();
        self.start(command, entry, Before::new());
    }
}

fn kill_switch(engaged: bool) -> Control {
    Control::KillSwitch {
        engaged,
        by: "ops".into(),
        reason: String::new(),
    }
}

use OutcomeStatus::{Accepted, Cancelled, Expired, Failed, Rejected, Started, Succeeded, Unknown};

const DONE: [(OutcomeStatus, u16); 3] = [(Accepted, 102), (Started, 102), (Succeeded, 200)];

#[test]
fn invariant_13_a_command_that_comes_again_has_its_effect_once() {
    let bench = Bench::new();
    let command = command(action("cart", 1), 1);
    assert_eq!(bench.carry_out(&command), DONE);
    // Long after its expiry, with the kill switch engaged: what is done is done.
    bench.clock.store(i64::MAX / 2, Ordering::SeqCst);
    bench.control(&kill_switch(true));
    assert_eq!(bench.carry_out(&command), [(Succeeded, 200)]);
    assert_eq!(bench.acts(), 1);
}

#[test]
fn a_refusal_stays_when_its_reason_has_gone() {
    let bench = Bench::new();
    bench.control(&kill_switch(true));
    let command = command(action("cart", 1), 1);
    assert_eq!(bench.carry_out(&command), [(Rejected, 423)]);
    bench.control(&kill_switch(false));
    assert_eq!(bench.carry_out(&command), [(Rejected, 423)]);
    assert_eq!(bench.acts(), 0);
}

#[test]
fn one_id_means_one_command() {
    let bench = Bench::new();
    let first = command(action("cart", 1), 1);
    bench.carry_out(&first);
    let mut other = action("cart", 1);
    other.explain.score = 9.0;
    assert_eq!(bench.carry_out(&command(other, 1)), [(Rejected, 422)]);
    assert_eq!(bench.carry_out(&first), [(Succeeded, 200)]);
    assert_eq!(bench.acts(), 1);
}

#[test]
fn who_may_not_is_refused() {
    let bench = Bench::new();
    let mut foreign = action("cart", 1);
    foreign.target.target.tenant = "other".into();
    foreign.target.key = foreign.target.target.key();
    assert_eq!(bench.carry_out(&command(foreign, 1)), [(Rejected, 401)]);
    let mut unlisted = action("cart", 2);
    unlisted.action.kind = "delete".into();
    assert_eq!(bench.carry_out(&command(unlisted, 1)), [(Rejected, 403)]);
    let mut shadow = action("cart", 3);
    shadow.mode = "shadow".into();
    assert_eq!(bench.carry_out(&command(shadow, 1)), []);
    assert_eq!(bench.acts(), 0);

    let world = World {
        unknown_target: true,
        ..World::default()
    };
    let bench = Bench::over(world);
    assert_eq!(bench.carry_out(&command(action("cart", 1), 1)), [(Rejected, 404)]);
}

#[test]
fn what_is_another_executors_is_left_to_it() {
    let mut bench = Bench::new();
    bench.worker.unlisted = Unlisted::Ignore;
    let mut unlisted = action("cart", 1);
    unlisted.action.kind = "delete".into();
    assert_eq!(bench.carry_out(&command(unlisted, 1)), []);
    let mut out_of_bounds = action("cart", 2);
    out_of_bounds.action.params.insert("force".into(), json!(true));
    assert_eq!(bench.carry_out(&command(out_of_bounds, 1)), [(Rejected, 403)]);
    assert_eq!(bench.acts(), 0);
}

#[test]
fn a_stale_or_late_command_is_refused() {
    let bench = Bench::new();
    assert_eq!(bench.carry_out(&command(action("cart", 2), 7)), DONE);
    assert_eq!(bench.carry_out(&command(action("cart", 1), 6)), [(Rejected, 412)]);
    bench.clock.store(NOW_MS + 29_001, Ordering::SeqCst);
    assert_eq!(bench.carry_out(&command(action("cart", 3), 8)), [(Expired, 410)]);
    assert_eq!(bench.acts(), 1);
}

#[test]
fn nothing_starts_while_control_cannot_be_read_and_waiting_ends_at_expiry() {
    let bench = Bench::new();
    let clock = Arc::clone(&bench.clock);
    struct Deaf(Arc<AtomicI64>);
    impl ControlSource for Deaf {
        fn current(&self) -> Result<Option<Arc<ControlView>>, Error> {
            self.0.fetch_add(5_000, Ordering::SeqCst);
            Ok(None)
        }
    }
    let Bench {
        mut worker,
        reports,
        world,
        ..
    } = bench;
    worker.control = Box::new(Deaf(Arc::clone(&clock)));
    worker.carry_out(&command(action("cart", 1), 1)).unwrap();
    let reports = reports.0.lock().unwrap();
    let outcome: Outcome = serde_json::from_slice(reports[0].value.as_deref().unwrap()).unwrap();
    assert_eq!((outcome.status, reports.len()), (Expired, 1));
    assert_eq!(clock.load(Ordering::SeqCst), NOW_MS + 30_000);
    assert_eq!(world.acts.load(Ordering::SeqCst), 0);
}

#[test]
fn a_withdrawn_command_does_not_start() {
    let bench = Bench::new();
    let command = command(action("cart", 1), 1);
    bench
        .worker
        .cancelled
        .insert(command.id(), "recovered by itself".into());
    assert_eq!(bench.carry_out(&command), [(Cancelled, 409)]);
    bench.worker.cancelled.remove(command.id());
    assert_eq!(bench.carry_out(&command), [(Cancelled, 409)]);
    assert_eq!(bench.acts(), 0);
}

#[test]
fn what_is_withdrawn_after_it_was_announced_is_not_begun() {
    let world = World::default();
    let adapter = FakeAdapter(Arc::new(world));
    let command = command(action("cart", 1), 1);
    let stopped = adapter.act_while_wanted(&command, &Before::new(), &|| false);
    assert!(matches!(stopped, Err(Failure::Stopped(_))), "{stopped:?}");
    assert_eq!(adapter.0.acts.load(Ordering::SeqCst), 0);
}

#[test]
fn a_command_that_a_person_took_back_on_control_does_not_start() {
    let bench = Bench::new();
    let (taken_back, other) = (command(action("cart", 1), 1), command(action("cart", 2), 2));
    bench.control(&Control::Cancel {
        action: taken_back.id(),
        by: "ada".into(),
        at: NOW_MS,
        reason: "deploy under way".into(),
    });
    assert_eq!(bench.carry_out(&taken_back), [(Cancelled, 409)]);
    assert_eq!(bench.carry_out(&other)[2], (Succeeded, 200));
    assert_eq!(bench.acts(), 1);
}

#[test]
fn failures_are_told_apart_from_doubt() {
    let bench = Bench::new();
    *bench.world.fails.lock().unwrap() = Some(Failure::failed("no such file"));
    assert_eq!(bench.carry_out(&command(action("cart", 1), 1))[2], (Failed, 500));
    *bench.world.fails.lock().unwrap() = Some(Failure::Unknown("no answer".into()));
    assert_eq!(bench.carry_out(&command(action("cart", 2), 1))[2], (Unknown, 504));
    *bench.world.fails.lock().unwrap() = Some(Failure::Stopped("half way".into()));
    assert_eq!(bench.carry_out(&command(action("cart", 3), 1))[2], (Cancelled, 409));
}

#[test]
fn an_unfinished_action_is_read_from_the_world() {
    let cases = [
        (Reconciled::Done(Map::new()), vec![(Succeeded, 200)], 0),
        (Reconciled::Failed(Failure::failed("x")), vec![(Failed, 500)], 0),
        (Reconciled::Unknown("x".into()), vec![(Unknown, 504)], 0),
        (Reconciled::NotDone, vec![(Started, 102), (Succeeded, 200)], 1),
        (Reconciled::Repeatable, vec![(Started, 102), (Succeeded, 200)], 1),
    ];
    for (found, expected, acts) in cases {
        let bench = Bench::new();
        let command = command(action("cart", 1), 1);
        bench.intend(&command);
        *bench.world.reconciled.lock().unwrap() = Some(found.clone());
        assert_eq!(bench.carry_out(&command), expected, "{found:?}");
        assert_eq!(bench.acts(), acts, "{found:?}");
    }
}

#[test]
fn what_may_have_been_done_before_is_doubt_when_it_is_withdrawn() {
    for (found, expected) in [
        (Reconciled::NotDone, (Cancelled, 409)),
        (Reconciled::Repeatable, (Unknown, 504)),
    ] {
        let bench = Bench::new();
        let command = command(action("cart", 1), 1);
        bench.intend(&command);
        *bench.world.reconciled.lock().unwrap() = Some(found);
        *bench.world.fails.lock().unwrap() = Some(Failure::Stopped("before it was begun".into()));
        assert_eq!(bench.carry_out(&command), [(Started, 102), expected]);
    }
}

#[test]
fn an_unfinished_action_does_not_start_after_its_expiry() {
    for (found, expected) in [
        (Reconciled::NotDone, (Expired, 410)),
        (Reconciled::Repeatable, (Unknown, 504)),
    ] {
        let bench = Bench::new();
        let command = command(action("cart", 1), 1);
        bench.intend(&command);
        bench.clock.store(NOW_MS + 30_000, Ordering::SeqCst);
        *bench.world.reconciled.lock().unwrap() = Some(found);
        assert_eq!(bench.carry_out(&command), [expected]);
        assert_eq!(bench.acts(), 0);
    }
}

#[test]
fn an_action_is_bound_to_the_world_that_was_seen_before_it() {
    let bench = Bench::new();
    let first = command(action("cart", 1), 1);
    bench.worker.carry_out(&first).unwrap();
    let seen = |look: usize| Some(Map::from_iter([("look".to_owned(), json!(look))]));
    assert_eq!(*bench.world.told.lock().unwrap(), [None, seen(0)]);

    // A predecessor looked, meant to act and died: what it saw counts, not what is there now.
    let second = command(action("cart", 2), 2);
    let entry = bench.worker.entry(&second);
    bench.start(&second, entry, seen(7).unwrap());
    bench.worker.carry_out(&second).unwrap();
    assert_eq!(bench.world.told.lock().unwrap()[2..], [seen(7), seen(7)]);
    assert_eq!(bench.world.looks.load(Ordering::SeqCst), 1);
}

#[test]
fn a_look_that_takes_too_long_starts_nothing() {
    let bench = Bench::over(World {
        looks_take_ms: 3_600_000,
        ..World::default()
    });
    let reported = bench.carry_out(&command(action("cart", 1), 1));
    assert_eq!(reported.last(), Some(&(OutcomeStatus::Expired, 410)));
    assert_eq!(bench.acts(), 0);
}

#[test]
fn a_lost_ledger_does_not_repeat_what_the_world_remembers() {
    let bench = Bench::new();
    *bench.world.reconciled.lock().unwrap() = Some(Reconciled::Done(Map::new()));
    assert_eq!(
        bench.carry_out(&command(action("cart", 1), 1)),
        [(Accepted, 102), (Succeeded, 200)]
    );
    assert_eq!(bench.acts(), 0);
}

#[test]
fn a_malformed_command_is_answered_where_it_says_whom() {
    let bench = Bench::new();
    let command = command(action("cart", 1), 1);
    let malformed = Malformed {
        reason: "the data breaks its schema".into(),
        addressee: Some(Box::new(Addressee::from(&command))),
    };
    bench.worker.answer_malformed(&malformed).unwrap();
    assert_eq!(bench.reported(), [(Rejected, 412)]);
    let nobody = Malformed {
        addressee: None,
        ..malformed
    };
    bench.worker.answer_malformed(&nobody).unwrap();
    assert_eq!(bench.reported(), []);
}

#[test]
fn what_is_over_the_budget_is_refused_and_stays_so() {
    let mut bench = Bench::new();
    bench.worker.bounds.budget = vec![Rule {
        action: "restart".into(),
        target: "cart".into(),
        actions_max: 1,
        window_ms: 5_000,
    }];
    let (first, second) = (command(action("cart", 1), 1), command(action("cart", 2), 2));
    assert_eq!(bench.carry_out(&first), DONE);
    assert_eq!(bench.carry_out(&second), [(Accepted, 102), (Rejected, 429)]);
    bench.clock.fetch_add(5_000, Ordering::SeqCst);
    assert_eq!(bench.carry_out(&second), [(Rejected, 429)]);
    assert_eq!(bench.carry_out(&command(action("cart", 3), 3)), DONE);
    assert_eq!(bench.acts(), 2);
    let held_back = bench.worker.watch.metrics.snapshot().into_iter();
    let held_back: Vec<_> = held_back
        .filter(|series| series.name.ends_with("held_back_total"))
        .collect();
    assert_eq!(held_back.len(), 1);
    assert!(
        held_back[0].labels.contains(&("by", "budget".to_owned())),
        "{held_back:?}"
    );
}

#[test]
fn after_failures_in_a_row_nothing_is_tried_for_a_while() {
    let bench = Bench::new();
    let ends = |number: u32, failure: Option<Failure>| {
        *bench.world.fails.lock().unwrap() = failure;
        bench
            .carry_out(&command(action("cart", number), u64::from(number)))
            .pop()
            .unwrap()
    };
    let gone = || Some(Failure::coded(404, "gone"));
    assert_eq!(ends(1, Some(Failure::failed("x"))), (Failed, 500));
    assert_eq!(ends(2, Some(Failure::Unknown("x".into()))), (Unknown, 504));
    assert_eq!(ends(3, gone()), (Failed, 404));
    assert_eq!(ends(4, Some(Failure::retryable("x"))), (Failed, 500));
    assert_eq!(ends(5, None), (Rejected, 429));
    assert_eq!(bench.acts(), 4);
    bench.clock.fetch_add(10_000, Ordering::SeqCst);
    assert_eq!(ends(6, Some(Failure::failed("x"))), (Failed, 500));
    assert_eq!(ends(7, None), (Rejected, 429));
    bench.clock.fetch_add(10_000, Ordering::SeqCst);
    assert_eq!(ends(8, None), (Succeeded, 200));
    assert_eq!(ends(9, None), (Succeeded, 200));
}
