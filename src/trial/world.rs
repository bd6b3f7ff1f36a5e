//! The environment: services under load that call one another, one fault at a time, and what actions do to it.
//!
//! It alone knows the fault and its cure. What leaves it is what a collector would have: a heartbeat and a few measurements
//! per service and step, or nothing where the service is silent.

use std::collections::BTreeMap;

use crate::{
    Random,
    catalogue::{Catalogue, Fault, Signal},
};

/// One step of the clock.
pub const STEP_MS: i64 = 5_000;
/// The fault starts so long after the run does.
const FAULT_AFTER_MS: (f64, f64) = (600_000.0, 900_000.0);
/// Errors of a callee that reach its caller.
const PASSED_ON: f64 = 0.6;
/// Above this use of its capacity a service gets slow, above the second it fails.
const SLOW_ABOVE: f64 = 0.8;
const FAILS_ABOVE: f64 = 1.2;
/// Use of capacity in normal times.
const USED: f64 = 0.4;

/// What a service said of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub rps: f64,
    pub cpu: f64,
    pub memory: f64,
    pub errors: f64,
    /// Its own time, and with what it waited for.
    pub own_latency: f64,
    pub latency: f64,
    /// A new version runs that is younger than half an hour.
    pub deployed: bool,
}

#[derive(Clone, Debug)]
struct Service {
    callees: Vec<usize>,
    weight: f64,
    capacity: f64,
    down_until_ms: i64,
    /// The present step's errors and latency, as callers see them.
    errors: f64,
    latency: f64,
    base_latency: f64,
    base_memory: f64,
}

/// One run from healthy through a fault to whatever comes of it.
pub struct World<'a> {
    catalogue: &'a Catalogue,
    pub names: Vec<&'a str>,
    services: Vec<Service>,
    fault: Option<Active<'a>>,
    random: Random,
    pub elapsed_ms: i64,
    /// Effects at the target by action id: what exactly once is judged by.
    pub effects: BTreeMap<String, u32>,
}

struct Active<'a> {
    fault: &'a Fault,
    hit: Vec<usize>,
    from_ms: i64,
    heals_ms: i64,
    hidden_until_ms: i64,
    severity: f64,
    ended_ms: Option<i64>,
}

/// What the environment knows of the run, for the marks alone.
#[derive(Clone, Debug)]
pub struct Truth<'a> {
    pub fault: &'a Fault,
    pub service: &'a str,
    pub from_ms: i64,
}

impl<'a> World<'a> {
    /// A healthy world in which, with `fault`, something will break.
    pub fn new(catalogue: &'a Catalogue, fault: Option<&'a Fault>, mut random: Random) -> Self {
        let names = catalogue.callers_first().unwrap_or_default();
        let at = |name: &String| names.iter().position(|other| other == name);
        let service = |name: &&str| Service {
            callees: catalogue.calls[*name].iter().filter_map(at).collect(),
            weight: 0.0,
            capacity: 1.0,
            down_until_ms: 0,
            errors: 0.0,
            latency: 0.0,
            base_latency: 5.0 + 3.0 * (name.len() % 5) as f64,
            base_memory: 200.0 + 40.0 * (name.len() % 7) as f64,
        };
        let mut services: Vec<Service> = names.iter().map(service).collect();
        for at in 0..services.len() {
            // Callers stand first: who has no load yet is where visitors come in.
            if services[at].weight == 0.0 {
                services[at].weight = 100.0;
            }
            let (weight, callees) = (services[at].weight, services[at].callees.clone());
            for callee in callees {
                services[callee].weight += 0.6 * weight;
            }
        }
        let active = fault.map(|fault| Active::new(fault, services.len(), &mut random));
        Self {
            catalogue,
            names,
            services,
            fault: active,
            random,
            elapsed_ms: 0,
            effects: BTreeMap::new(),
        }
    }

    pub fn truth(&self) -> Option<Truth<'a>> {
        let active = self.fault.as_ref()?;
        Some(Truth {
            fault: active.fault,
            service: self.names[active.hit[0]],
            from_ms: active.from_ms,
        })
    }

    /// Whether something is wrong at that service itself, now or hidden.
    pub fn is_sick(&self, service: &str) -> bool {
        let here = |at: &usize| self.names[*at] == service;
        self.fault
            .as_ref()
            .is_some_and(|active| active.lasts(self.elapsed_ms) && active.hit.iter().any(here))
    }

    /// When the fault ended for good, if it did.
    pub fn ended_ms(&self) -> Option<i64> {
        self.fault.as_ref()?.ended_ms
    }

    /// Whether what is measured arrives.
    pub fn telemetry_flows(&self) -> bool {
        let lost = |active: &Active<'_>| active.fault.telemetry_lost && active.lasts(self.elapsed_ms);
        !self.fault.as_ref().is_some_and(lost)
    }

    /// One step: what each service said, in the order of `names`; `None` is silence.
    pub fn step(&mut self) -> Vec<Option<Sample>> {
        self.elapsed_ms += STEP_MS;
        if let Some(active) = &mut self.fault
            && active.ended_ms.is_none()
            && self.elapsed_ms >= active.heals_ms
        {
            active.ended_ms = Some(self.elapsed_ms);
        }
        let wave = 1.0 + 0.15 * (self.elapsed_ms as f64 / 1_800_000.0 * std::f64::consts::TAU).sin();
        let mut samples = vec![None; self.services.len()];
        // Callees first: what they do to their callers is known then.
        for at in (0..self.services.len()).rev() {
            samples[at] = self.measure(at, wave);
        }
        if !self.telemetry_flows() {
            samples.fill(None);
        }
        samples
    }

    fn measure(&mut self, at: usize, wave: f64) -> Option<Sample> {
        let now_ms = self.elapsed_ms;
        let active = self
            .fault
            .as_ref()
            .filter(|active| active.shows(now_ms) && active.hit.contains(&at));
        let change = |signal: Signal| active.map_or((1.0, 0.0), |active| active.change(signal, now_ms));
        let silent = active.is_some_and(|active| active.fault.silent);
        let deployed = self.fault.as_ref().is_some_and(|active| {
            active.fault.deployed
                && active.hit.contains(&at)
                && active.ended_ms.is_none()
                && now_ms >= active.from_ms - 120_000
        });
        let (load, cpu, memory) = (change(Signal::Load), change(Signal::Cpu), change(Signal::Memory));
        let (latency, errors) = (change(Signal::Latency), change(Signal::Errors));
        let service = &self.services[at];
        if silent || now_ms < service.down_until_ms {
            self.services[at].errors = 1.0;
            self.services[at].latency = 0.0;
            return None;
        }
        let random = &mut self.random;
        let rps = service.weight * wave * load.0 * random.around_one(0.04);
        let used = USED * rps / service.weight / service.capacity;
        let queueing = 1.0 + 6.0 * (used - SLOW_ABOVE).max(0.0);
        let own_latency = service.base_latency * queueing * latency.0 * random.around_one(0.06);
        let turned_away = (0.5 * (used - FAILS_ABOVE).max(0.0)).min(0.8);
        let own_errors = 0.003 * random.around_one(0.2) + errors.1 * random.around_one(0.1) + turned_away;
        let share = service.callees.len().max(1) as f64;
        let callees = service.callees.iter().map(|callee| &self.services[*callee]);
        let (passed_on, waited) = callees.fold((0.0, 0.0), |(errors, latency), callee| {
            (
                errors + PASSED_ON * callee.errors / share,
                latency + callee.latency / share,
            )
        });
        let sample = Sample {
            rps,
            cpu: (used * cpu.0 * random.around_one(0.05)).min(1.0),
            memory: service.base_memory * memory.0 * random.around_one(0.02),
            errors: (own_errors + passed_on).clamp(0.0, 1.0),
            own_latency,
            latency: own_latency + waited,
            deployed,
        };
        self.services[at].errors = sample.errors;
        self.services[at].latency = sample.latency;
        Some(sample)
    }

    /// How long an action of that kind takes from its command to its effect.
    pub fn takes_ms(&self, kind: &str) -> i64 {
        self.catalogue
            .actions
            .get(kind)
            .map_or(0, |effort| effort.takes_s * 1_000)
    }

    /// Carries an action out. The same action a second time is a second effect, and is counted as one.
    pub fn act(&mut self, action_id: &str, kind: &str, service: &str) {
        *self.effects.entry(action_id.to_owned()).or_default() += 1;
        let Some(at) = self.names.iter().position(|name| *name == service) else {
            return;
        };
        let now_ms = self.elapsed_ms;
        let down_ms = self
            .catalogue
            .actions
            .get(kind)
            .map_or(0, |effort| effort.down_s * 1_000);
        self.services[at].down_until_ms = now_ms + down_ms;
        if kind == "scale_up" {
            self.services[at].capacity *= 4.0;
        }
        let Some(active) = self
            .fault
            .as_mut()
            .filter(|active| active.hit.contains(&at) && active.lasts(now_ms))
        else {
            return;
        };
        let is = |named: &String| named == kind;
        if active.fault.cures.iter().any(is) {
            active.ended_ms = Some(now_ms + down_ms);
        } else if let Some(seconds) = active.fault.hides.get(kind) {
            active.hidden_until_ms = now_ms + seconds * 1_000;
        } else if active.fault.worsens.iter().any(is) {
            active.severity *= 1.5;
        }
    }
}

impl<'a> Active<'a> {
    fn new(fault: &'a Fault, services: usize, random: &mut Random) -> Self {
        let from_ms = random.between(FAULT_AFTER_MS.0, FAULT_AFTER_MS.1) as i64;
        let count = fault
            .share_of_fleet
            .map_or(1, |share| (share * services as f64).ceil() as usize);
        let first = random.below(services);
        let heals = fault
            .heals_s
            .map(|(from, to)| from_ms + (1_000.0 * random.between(from, to)) as i64);
        Self {
            fault,
            hit: (0..count.clamp(1, services))
                .map(|at| (first + at) % services)
                .collect(),
            from_ms,
            heals_ms: heals.unwrap_or(i64::MAX),
            hidden_until_ms: 0,
            severity: random.between(0.8, 1.25),
            ended_ms: None,
        }
    }

    fn lasts(&self, now_ms: i64) -> bool {
        now_ms >= self.from_ms && self.ended_ms.is_none_or(|ended_ms| now_ms < ended_ms)
    }

    fn shows(&self, now_ms: i64) -> bool {
        self.lasts(now_ms) && now_ms >= self.hidden_until_ms && !self.fault.telemetry_lost
    }

    /// Factor and summand of a signal now.
    fn change(&self, signal: Signal, now_ms: i64) -> (f64, f64) {
        let Some(change) = self.fault.signals.get(&signal) else {
            return (1.0, 0.0);
        };
        let since_s = (now_ms - self.from_ms.max(self.hidden_until_ms)) as f64 / 1_000.0;
        let risen = if change.ramp_s > 0.0 {
            (since_s / change.ramp_s).min(1.0)
        } else {
            1.0
        };
        let times = 1.0 + (change.times - 1.0) * risen * if change.times > 1.0 { self.severity } else { 1.0 };
        (times, change.plus * risen * self.severity)
    }
}
