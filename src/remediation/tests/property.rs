//! Random histories, checked against the invariants after every record.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use protocol::message::{Control, DecisionKind, Mode, OutcomeStatus};
use uuid::Uuid;

use super::{World, name_of};
use crate::{Choice, Effect, FleetConfig, Limit, Policy};

const SERVICES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const STATUSES: [(OutcomeStatus, u16); 9] = [
    (OutcomeStatus::Accepted, 102),
    (OutcomeStatus::Started, 102),
    (OutcomeStatus::Succeeded, 200),
    (OutcomeStatus::Succeeded, 200),
    (OutcomeStatus::Failed, 500),
    (OutcomeStatus::Rejected, 409),
    (OutcomeStatus::Rejected, 404),
    (OutcomeStatus::Expired, 410),
    (OutcomeStatus::Unknown, 504),
];

#[derive(Clone, Debug)]
enum Happening {
    Pass(u16),
    Jump(u32),
    Alarm(usize, usize, f64),
    Below(usize, usize),
    Clear(usize, usize),
    Outcome(usize, usize),
    Answer(usize, usize, bool),
    KillSwitch(bool),
    Mode(usize, Mode),
    Maintenance(usize, u16),
    Reset(usize),
    Population(u64),
    Telemetry(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    let service = 0..SERVICES.len();
    let policy = 0..3usize;
    prop_oneof![
        6 => (1..90u16).prop_map(Happening::Pass),
        1 => (100..20_000u32).prop_map(Happening::Jump),
        8 => (service.clone(), policy.clone(), 1.0..5.0f64).prop_map(|(s, p, score)| Happening::Alarm(s, p, score)),
        1 => (service.clone(), policy.clone()).prop_map(|(s, p)| Happening::Below(s, p)),
        4 => (service.clone(), policy.clone()).prop_map(|(s, p)| Happening::Clear(s, p)),
        6 => (service.clone(), 0..STATUSES.len()).prop_map(|(s, status)| Happening::Outcome(s, status)),
        3 => (service.clone(), 0..3usize, any::<bool>()).prop_map(|(s, by, yes)| Happening::Answer(s, by, yes)),
        1 => any::<bool>().prop_map(Happening::KillSwitch),
        1 => (service.clone(), prop_oneof![Just(Mode::Off), Just(Mode::Shadow), Just(Mode::Approve), Just(Mode::Auto)])
            .prop_map(|(s, mode)| Happening::Mode(s, mode)),
        1 => (service.clone(), 1..600u16).prop_map(|(s, seconds)| Happening::Maintenance(s, seconds)),
        1 => service.prop_map(Happening::Reset),
        1 => (0..30u64).prop_map(Happening::Population),
        1 => any::<bool>().prop_map(Happening::Telemetry),
    ]
}

fn fleet() -> (FleetConfig, Vec<Policy>) {
    let seconds = std::time::Duration::from_secs;
    let config = FleetConfig {
        startup_grace: seconds(20),
        settle: seconds(3),
        settle_silent: seconds(3),
        verify_for: seconds(60),
        limits_fleet: vec![Limit {
            actions: 4,
            per: seconds(900),
        }],
        refusal_interval: seconds(20),
        ..FleetConfig::default()
    };
    let policy = |name: &str, detector: &str, action: Choice| Policy {
        mode: Mode::Auto,
        cooldown: seconds(60),
        limits: vec![
            Limit {
                actions: 2,
                per: seconds(300),
            },
            Limit {
                actions: 5,
                per: seconds(3600),
            },
        ],
        expires_after: seconds(30),
        exec_timeout: seconds(30),
        ..Policy::new("shop", name, detector, action)
    };
    let ladder = Choice::Ladder(vec!["restart".into(), "scale_up".into(), "rollback".into()]);
    let restart = Choice::Fixed("restart".into());
    let policies = vec![
        Policy {
            latched: true,
            ..policy("quiet", "silent", restart.clone())
        },
        Policy {
            for_k: 2,
            for_n: 4,
            clear_windows: Some(2),
            ..policy("slow", "latency", ladder)
        },
        Policy {
            for_k: 1,
            for_n: 3,
            mode: Mode::Approve,
            ..policy("leak", "memory", restart)
        },
    ];
    (config, policies)
}

fn happen(world: &mut World, happening: &Happening) -> Vec<Effect> {
    let by = || "someone".to_owned();
    let named = |world: &World, at: usize| (world.policies[at].detector.clone(), world.policies[at].name.clone());
    match *happening {
        Happening::Pass(seconds) => (0..seconds).flat_map(|_| world.second()).collect(),
        Happening::Jump(seconds) => {
            world.now_ms += i64::from(seconds) * 1_000;
            world.second()
        }
        Happening::Alarm(service, policy, score) => {
            let (detector, name) = named(world, policy);
            world.window(&detector, SERVICES[service], score, &[&name], &[])
        }
        Happening::Below(service, policy) => {
            let (detector, _) = named(world, policy);
            world.window(&detector, SERVICES[service], 1.1, &[], &[])
        }
        Happening::Clear(service, policy) => {
            let (detector, name) = named(world, policy);
            world.window(&detector, SERVICES[service], 0.1, &[], &[&name])
        }
        Happening::Outcome(service, status) if world.actions.contains_key(SERVICES[service]) => {
            let (status, code) = STATUSES[status];
            world.outcome(SERVICES[service], status, code)
        }
        Happening::Answer(service, by, yes) if world.requests.contains_key(SERVICES[service]) => {
            world.answer(SERVICES[service], ["ada", "bob", ""][by], yes)
        }
        Happening::Outcome(..) | Happening::Answer(..) => Vec::new(),
        Happening::KillSwitch(engaged) => world.control(&Control::KillSwitch {
            engaged,
            by: by(),
            reason: String::new(),
        }),
        Happening::Mode(service, mode) => world.control(&Control::Mode {
            service: SERVICES[service].into(),
            action: "*".into(),
            mode,
            until: None,
            by: by(),
            reason: String::new(),
        }),
        Happening::Maintenance(service, seconds) => {
            let (from, to) = (world.now_ms, world.now_ms + i64::from(seconds) * 1_000);
            let service = SERVICES[service].into();
            world.control(&Control::Maintenance {
                service,
                from,
                to,
                by: by(),
                reason: String::new(),
            })
        }
        Happening::Reset(service) => {
            let (service, at) = (SERVICES[service].into(), world.now_ms);
            world.control(&Control::Reset {
                service,
                by: by(),
                at,
                reason: String::new(),
            })
        }
        Happening::Population(count) => {
            world.population.values_mut().for_each(|value| *value = count);
            world.second()
        }
        Happening::Telemetry(flows) => {
            world.flowing = flows;
            Vec::new()
        }
    }
}

/// What an outsider who reads the topics can check.
#[derive(Default)]
struct Witness {
    ids: BTreeSet<Uuid>,
    acted_ms: Vec<(i64, String)>,
    /// The command on its way, by service: until a verdict, or a person's reset.
    in_flight: BTreeMap<String, Uuid>,
    steps: BTreeSet<(Uuid, u32, u32)>,
    sequence: u64,
    killed: bool,
    refusals: usize,
}

impl Witness {
    fn check(&mut self, world: &World, effects: &[Effect]) {
        let now_ms = world.fleet.now_ms();
        for effect in effects {
            let event = match effect {
                Effect::Decision { event, .. }
                | Effect::Action { event, .. }
                | Effect::Cancelled { event, .. }
                | Effect::Verdict { event, .. }
                | Effect::Incident { event, .. }
                | Effect::Approval { event, .. } => event,
                Effect::Note(_) | Effect::Unusable(_) => continue,
            };
            assert!(self.ids.insert(event.id), "I8: id {} twice: {effect:?}", event.id);
            assert!(event.correlation_id.is_some() && event.causation_id.is_some() && event.traceparent.is_some());
            match effect {
                Effect::Decision { data, .. } => {
                    let refused = data.gates.iter().position(|gate| !gate.passed);
                    let open = matches!(data.verdict, DecisionKind::Act | DecisionKind::Shadow);
                    assert_eq!(refused.is_none(), open, "{data:?}");
                    assert!(
                        refused.is_none_or(|at| at == data.gates.len() - 1),
                        "the first refusal ends it"
                    );
                    self.refusals += usize::from(data.verdict == DecisionKind::Refuse);
                }
                Effect::Action { event, data, .. } => {
                    assert!(!self.killed, "I9: the kill switch is engaged");
                    assert_eq!(event.id, data.action_id);
                    assert!(event.sequence > Some(self.sequence), "the fencing token grows");
                    self.sequence = event.sequence.unwrap_or_default();
                    assert_eq!(event.expiry_time_ms, Some(data.timing.start_deadline));
                    assert!(data.timing.start_deadline > now_ms, "I2: published before it expires");
                    let step = (data.incident_id, data.ladder.step, data.attempt);
                    assert!(self.steps.insert(step), "one action per step and attempt");
                    let service = data.target.target.name.clone();
                    let other = self.in_flight.insert(service.clone(), data.action_id);
                    assert_eq!(other, None, "I3: one in flight per target");
                    self.acted_ms.push((now_ms, service));
                    self.check_limits(world, now_ms);
                    self.check_storm(world);
                }
                Effect::Verdict { data, .. } => {
                    self.in_flight.remove(&name_of(&data.target_key));
                }
                _ => {}
            }
        }
    }

    fn check_limits(&self, world: &World, now_ms: i64) {
        let within = |limit: &Limit, count: usize| count <= limit.actions as usize;
        let since = |limit: &Limit| now_ms - limit.per.as_millis() as i64;
        for limit in &world.config.limits_fleet {
            let count = self.acted_ms.iter().filter(|(at, _)| *at > since(limit)).count();
            assert!(within(limit, count), "I4: {count} actions in the fleet");
        }
        for limit in &world.config.limits_service {
            for service in SERVICES {
                let acted = self
                    .acted_ms
                    .iter()
                    .filter(|(at, name)| name == service && *at > since(limit));
                assert!(within(limit, acted.count()), "I4: too many at {service}");
            }
        }
    }

    fn check_storm(&self, world: &World) {
        for (group, population) in &world.population {
            let sick = world.fleet.index.sick.get(group).map_or(0, BTreeMap::len) as u64;
            let share = sick as f64 / (*population).max(sick).max(1) as f64;
            let large = (*population).max(sick) >= u64::from(world.config.min_group);
            assert!(
                !large || share <= world.config.fleet_sick_share,
                "no action in a storm: {sick} of {population}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// I2, I3, I4, I8, I9 and the storm rule, with a restore after every record; and the same history twice gives the same
    /// effects, byte for byte.
    #[test]
    fn invariants_hold(history in prop::collection::vec(happening(), 1..80)) {
        let run = || {
            let (config, policies) = fleet();
            let mut world = World::new(config, policies);
            let mut witness = Witness::default();
            world.population.values_mut().for_each(|count| *count = 6);
            let auto = Control::Mode {
                service: "*".into(), action: "*".into(), mode: Mode::Auto, until: None, by: "someone".into(), reason: String::new(),
            };
            world.control(&auto);
            let seconds = |happening: &Happening| match happening {
                Happening::Pass(seconds) => vec![Happening::Pass(1); usize::from(*seconds)],
                other => vec![other.clone()],
            };
            for happening in &history.iter().flat_map(seconds).collect::<Vec<_>>() {
                if let Happening::KillSwitch(false) = happening {
                    witness.killed = false;
                }
                let effects = happen(&mut world, happening);
                witness.check(&world, &effects);
                if let Happening::KillSwitch(true) = happening {
                    witness.killed = true;
                }
            }
            (world.said, world.store, witness.acted_ms.len())
        };
        let (said, store, _) = run();
        let (again, store_again, _) = run();
        prop_assert_eq!(said, again);
        prop_assert_eq!(store, store_again);
    }

    /// A fleet restored anywhere goes on as the one that never stopped.
    #[test]
    fn restoring_changes_nothing(history in prop::collection::vec(happening(), 1..60), every in 1..5i64) {
        let run = |every: i64| {
            let (config, policies) = fleet();
            let mut world = World::new(config, policies);
            world.restart_every = every;
            history.iter().for_each(|happening| { happen(&mut world, happening); });
            (world.said, world.store)
        };
        prop_assert_eq!(run(i64::MAX), run(every));
    }
}

/// A storm of anomalies on few targets yields a bounded number of records.
#[test]
fn refusals_are_bounded() {
    let (config, policies) = fleet();
    let mut world = World::new(config, policies);
    let mut decisions = 0;
    for round in 0..600 {
        for service in SERVICES {
            world.restart_every = i64::MAX;
            let effects = world.window("silent", service, 1.0 + f64::from(round), &["quiet"], &[]);
            decisions += effects
                .iter()
                .filter(|effect| matches!(effect, Effect::Decision { .. }))
                .count();
        }
        world.second();
    }
    assert!(
        decisions <= 6 * 12,
        "{decisions} decisions for 3600 anomalies of 6 targets in 10 minutes"
    );
}

/// Reports that were read before the command they are about count when it is published.
#[test]
fn early_outcomes_are_kept() {
    let (config, policies) = fleet();
    let auto = Control::Mode {
        service: "*".into(),
        action: "*".into(),
        mode: Mode::Auto,
        until: None,
        by: "someone".into(),
        reason: String::new(),
    };
    let run = |early: Option<&World>| {
        let mut world = World::new(config.clone(), policies.clone());
        world.population.values_mut().for_each(|count| *count = 6);
        world.control(&auto);
        (0..30).for_each(|_| drop(world.second()));
        if let Some(known) = early {
            world.actions.clone_from(&known.actions);
            world.outcome("a", OutcomeStatus::Succeeded, 200);
        }
        world.window("silent", "a", 1.0, &["quiet"], &[]);
        (0..5).for_each(|_| drop(world.second()));
        if early.is_none() {
            world.outcome("a", OutcomeStatus::Succeeded, 200);
        }
        world
    };
    let (first, second) = (run(None), run(Some(&run(None))));
    let states = |world: &World| {
        let incidents = world.said.iter().filter_map(|effect| match effect {
            Effect::Incident { data, .. } => Some((data.state, data.reason.clone())),
            _ => None,
        });
        incidents.collect::<Vec<_>>()
    };
    assert_eq!(states(&first), states(&second));
    assert!(
        states(&first)
            .iter()
            .any(|(state, _)| *state == protocol::message::IncidentState::Verifying)
    );
}
