//! Who broke, who noticed, what was done, and whether it healed: a fold over what was seen, without clock or I/O.
//!
//! A fault is open from its injection until it has healed. Healed means both: the processor's own verdict on an action
//! of that fault is `recovered`, and another process than the broken one lives and has been heard of on Kafka since.
//! A command for a service without an open fault is a false action.

use std::collections::{BTreeMap, BTreeSet};

use protocol::message::Verdict;
use serde::Serialize;
use uuid::Uuid;

use super::observe::{Seen, What, action_id};
use crate::Fault;

/// One injected fault and what became of it. Times are milliseconds since its injection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultReport {
    pub fault: Fault,
    pub service: String,
    /// Since the demonstration began.
    pub injected_at_ms: u64,
    pub detected_ms: Option<u64>,
    pub healed_ms: Option<u64>,
    /// Commands for the service while the fault was open.
    pub actions: u32,
    pub pid_before: u32,
    pub pid_after: Option<u32>,
    #[serde(skip)]
    commands: BTreeSet<Uuid>,
    #[serde(skip)]
    recovered: bool,
}

/// What the demonstration knows so far.
#[derive(Debug, Default)]
pub struct Watch {
    faults: Vec<FaultReport>,
    /// The latest fault of each service: later words about the service belong to it.
    latest: BTreeMap<String, usize>,
    /// Which fault a command was for; `None`: none.
    commands: BTreeMap<Uuid, Option<usize>>,
    /// The process of each service heard of last.
    heard: BTreeMap<String, u32>,
    progress: bool,
    false_actions: BTreeSet<Uuid>,
}

impl Watch {
    /// A fault was injected; it is open from now on.
    pub fn inject(&mut self, fault: Fault, service: &str, pid: u32, at_ms: u64) -> usize {
        let index = self.faults.len();
        self.faults.push(FaultReport {
            fault,
            service: service.to_owned(),
            injected_at_ms: at_ms,
            detected_ms: None,
            healed_ms: None,
            actions: 0,
            pid_before: pid,
            pid_after: None,
            commands: BTreeSet::new(),
            recovered: false,
        });
        self.latest.insert(service.to_owned(), index);
        index
    }

    /// Takes note of a record; returns the fault that it belongs to.
    pub fn see(&mut self, seen: &Seen, at_ms: u64) -> Option<usize> {
        let index = match action_id(&seen.what).and_then(|id| self.commands.get(&id).copied().flatten()) {
            Some(index) => Some(index),
            None => service_of(&seen.what).and_then(|service| self.latest.get(service).copied()),
        };
        match &seen.what {
            What::Progress { watermark_ms } => self.progress |= watermark_ms.is_some(),
            What::Heartbeat { service, pid } => {
                self.heard.insert(service.clone(), *pid);
                self.hear(service, *pid);
            }
            What::Anomaly { anomaly, .. } if anomaly.is_anomaly => {
                if let Some(fault) = index
                    .map(|index| &mut self.faults[index])
                    .filter(|fault| fault.is_open())
                {
                    fault
                        .detected_ms
                        .get_or_insert(at_ms.saturating_sub(fault.injected_at_ms));
                }
            }
            What::Command { action, .. } if action.mode == "live" => self.command(action.action_id, index),
            What::Verdict { verdict, .. } if verdict.verdict == Verdict::Recovered => {
                let of = self.commands.get(&verdict.action_id).copied().flatten();
                if let Some(fault) = of.map(|index| &mut self.faults[index]) {
                    fault.recovered = true;
                }
            }
            _ => {}
        }
        index
    }

    fn command(&mut self, id: Uuid, index: Option<usize>) {
        if self.commands.contains_key(&id) {
            return;
        }
        let open = index.filter(|index| self.faults[*index].is_open());
        self.commands.insert(id, open);
        match open {
            Some(index) => {
                self.faults[index].commands.insert(id);
                self.faults[index].actions += 1;
            }
            None => {
                self.false_actions.insert(id);
            }
        }
    }

    fn hear(&mut self, service: &str, pid: u32) {
        let fault = self.latest.get(service).map(|index| &mut self.faults[*index]);
        if let Some(fault) = fault.filter(|fault| fault.is_open() && fault.pid_before != pid) {
            fault.pid_after = Some(pid);
        }
    }

    /// Closes the fault if it has healed. `alive` is the process that the process table knows for the service.
    pub fn settle(&mut self, index: usize, alive: Option<u32>, at_ms: u64) -> bool {
        let fault = &mut self.faults[index];
        let replaced = fault.pid_after.is_some() && fault.pid_after == alive;
        if fault.is_open() && fault.recovered && replaced {
            fault.healed_ms = Some(at_ms.saturating_sub(fault.injected_at_ms));
        }
        !fault.is_open()
    }

    /// Whether every one of the services was heard of and the processor's time moves.
    pub fn ready(&self, services: &[&str]) -> bool {
        self.progress && services.iter().all(|service| self.heard.contains_key(*service))
    }

    pub fn faults(&self) -> &[FaultReport] {
        &self.faults
    }

    pub fn false_actions(&self) -> usize {
        self.false_actions.len()
    }
}

impl FaultReport {
    pub fn is_open(&self) -> bool {
        self.healed_ms.is_none()
    }
}

/// The service that a record is about.
pub fn service_of(what: &What) -> Option<&str> {
    match what {
        What::Progress { .. } => None,
        What::Heartbeat { service, .. }
        | What::Anomaly { service, .. }
        | What::Decision { service, .. }
        | What::Command { service, .. }
        | What::Outcome { service, .. }
        | What::Verdict { service, .. } => Some(service),
    }
}

#[cfg(test)]
#[path = "watch/tests.rs"]
mod tests;
