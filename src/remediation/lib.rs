//! What to do about an anomaly, and whether it helped: the pure core of the decide stage.
//!
//! Owns everything that a fleet remembers between records: episodes and incidents per policy and target, locks, limits,
//! breakers, pending commands and approvals, control records. [`Fleet::apply`] takes one record with the broker's
//! timestamp and returns what to say; [`Fleet::take_dirty`] returns what to remember; [`Fleet::restore`] reads that back.
//!
//! Promises: the same inputs in the same order give the same effects and state, byte for byte, with a restore anywhere
//! between. No command without a firing episode, healthy telemetry, an unprotected target that nobody else is acting on,
//! a failure that is not fleet-wide, budget left and, where the mode says so, a person's yes. Every refusal is a decision
//! with the gate that refused and the values it compared.
//!
//! Does not know Kafka, Arrow, SQL or the clock: time is the greatest broker timestamp read, windows are in event time.
//! Fails only on state that it cannot read; input it cannot use is an effect, [`Effect::Unusable`].

pub mod backtest;
pub mod choose;
pub mod config;
mod decide;
mod effect;
mod error;
mod explain;
mod fleet;
mod follow;
mod gate;
mod graph;
mod observe;
mod pick;
mod policy;
mod signal;
mod stage;
mod state;
mod storm;
mod suggest;
mod trust;

pub use config::{ActionClass, ChooseConfig, FleetConfig, Impact, Limit};
pub use effect::{Effect, Input, Message};
pub use error::Error;
pub use explain::explain;
pub use fleet::Fleet;
pub use policy::{Choice, Policy};
pub use stage::{Decide, PoliciesOfTexts};
pub use suggest::{Suggestion, suggest};
pub use trust::{Approver, Standing, Trust};

#[cfg(test)]
mod tests;
