//! Services, actions and faults as data, so that anyone can bring their own.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::Error;

/// The catalogue that is shipped.
pub const DEFAULT: &str = include_str!("catalogue.json");

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Services by their caller. Nobody calls in a circle.
    pub calls: BTreeMap<String, Vec<String>>,
    pub actions: BTreeMap<String, Effort>,
    pub faults: Vec<Fault>,
}

/// What an action costs.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effort {
    /// From command to effect.
    pub takes_s: i64,
    /// The service is away for so long.
    pub down_s: i64,
}

/// One kind of fault.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub name: String,
    /// How often it comes up, against the others.
    pub weight: f64,
    /// What shows does not tell what is wrong: reported apart.
    #[serde(default)]
    pub ambiguous: bool,
    /// Actions that end it; the first is the right one. None: nothing that can be done here helps.
    pub cures: Vec<String>,
    /// Actions that make it worse.
    #[serde(default)]
    pub worsens: Vec<String>,
    /// Actions after which it is gone for so many seconds, and then comes back.
    #[serde(default)]
    pub hides: BTreeMap<String, i64>,
    /// It ends by itself after a time between these.
    #[serde(default)]
    pub heals_s: Option<(f64, f64)>,
    /// What changes of the service's signals: `errors`, `latency`, `memory`, `cpu`, `load`.
    #[serde(default)]
    pub signals: BTreeMap<Signal, Change>,
    /// No heartbeat, no telemetry, no answer.
    #[serde(default)]
    pub silent: bool,
    /// A new version went out just before.
    #[serde(default)]
    pub deployed: bool,
    /// It hits this share of all services at once.
    #[serde(default)]
    pub share_of_fleet: Option<f64>,
    /// The services are well; what they say does not arrive.
    #[serde(default)]
    pub telemetry_lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    Errors,
    Latency,
    Memory,
    Cpu,
    Load,
}

/// How a signal changes, at once or over a time.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(default = "one")]
    pub times: f64,
    #[serde(default)]
    pub plus: f64,
    #[serde(default)]
    pub ramp_s: f64,
}

fn one() -> f64 {
    1.0
}

impl Catalogue {
    /// Reads a catalogue and checks that everything it names is there.
    pub fn read(name: &str, text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Catalogue {
            name: name.to_owned(),
            reason,
        };
        let catalogue: Self = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let callees: BTreeSet<&String> = catalogue.calls.values().flatten().collect();
        if let Some(unknown) = callees.into_iter().find(|name| !catalogue.calls.contains_key(*name)) {
            return Err(wrong(format!(
                "service {unknown:?} is called and not listed under calls"
            )));
        }
        if catalogue.callers_first().is_none() {
            return Err(wrong("services call in a circle".into()));
        }
        for fault in &catalogue.faults {
            let named = fault.cures.iter().chain(&fault.worsens).chain(fault.hides.keys());
            if let Some(unknown) = named
                .into_iter()
                .find(|action| !catalogue.actions.contains_key(*action))
            {
                return Err(wrong(format!(
                    "fault {:?} names the unknown action {unknown:?}",
                    fault.name
                )));
            }
            if !(fault.weight.is_finite() && fault.weight >= 0.0) {
                return Err(wrong(format!("fault {:?} has the weight {}", fault.name, fault.weight)));
            }
        }
        let total = |ambiguous: bool| {
            let faults = catalogue.faults.iter().filter(|fault| fault.ambiguous == ambiguous);
            faults.map(|fault| fault.weight).sum::<f64>()
        };
        if total(true) <= 0.0 || total(false) <= 0.0 {
            return Err(wrong("ambiguous and other faults are both needed".into()));
        }
        Ok(catalogue)
    }

    /// All services, callers before those they call; `None` where there is a circle.
    pub fn callers_first(&self) -> Option<Vec<&str>> {
        let mut order: Vec<&str> = Vec::new();
        while order.len() < self.calls.len() {
            let placed = |name: &str| order.contains(&name);
            let free = self.calls.keys().find(|name| {
                let mut callers = self.calls.iter().filter(|(_, callees)| callees.contains(name));
                !placed(name) && callers.all(|(caller, _)| placed(caller))
            });
            order.push(free?);
        }
        Some(order)
    }
}
