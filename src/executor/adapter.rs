//! How a command becomes an effect in the world. One file per kind of world.
//!
//! An adapter is asked two things: whether the effect of an action has already taken place, and to bring it about.
//! Asking and acting must agree through a marker that the world itself keeps and that carries the action's id; then a
//! crash at any moment leaves at most one effect.

pub mod log;
pub mod process;
pub mod webhook;

use serde_json::{Map, Value};

use crate::command::Command;

/// What changed, for people: before, after, marker.
pub type Effect = Map<String, Value>;

/// Brings about the effects of one kind of action.
pub trait Adapter: Send + Sync {
    /// Whether the adapter knows the target at all; answered before anything is claimed.
    fn knows(&self, command: &Command) -> Result<(), String>;

    /// Reads the world for traces of an earlier run of this action.
    fn reconcile(&self, command: &Command) -> Reconciled;

    /// Brings the effect about. Never called when [`Adapter::reconcile`] says that it took place.
    fn act(&self, command: &Command) -> Result<Effect, Failure>;

    /// As [`Adapter::act`], for an adapter that can stop on the way: it asks `wanted` while it waits and before what it
    /// cannot take back, and answers [`Failure::Stopped`] once the action was withdrawn.
    fn act_while_wanted(&self, command: &Command, _wanted: &dyn Fn() -> bool) -> Result<Effect, Failure> {
        self.act(command)
    }
}

/// What the world says of an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Reconciled {
    /// It took place.
    Done(Effect),
    /// It was tried and failed; nothing is under way.
    Failed(Failure),
    /// It did not take place.
    NotDone,
    /// It may have taken place, and running it again under the same id cannot double it.
    Repeatable,
    /// Nobody can tell.
    Unknown(String),
}

/// Why there is no effect, or no knowing.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// There is none.
    Failed { code: u16, reason: String, retryable: bool },
    /// There may be one.
    Unknown(String),
    /// There is none, because the action was withdrawn on the way.
    Stopped(String),
}

impl Failure {
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            code: 500,
            reason: reason.into(),
            retryable: false,
        }
    }
}
