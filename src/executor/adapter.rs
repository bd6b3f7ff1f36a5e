//! How a command becomes an effect in the world. One file per kind of world.
//!
//! An adapter is asked two things: whether the effect of an action has already taken place, and to bring it about.
//! Asking and acting must agree through a marker that the world itself keeps and that carries the action's id; then a
//! crash at any moment leaves at most one effect. A world that keeps no markers is looked at first ([`Adapter::observe`]):
//! the ledger remembers what it was like, and an action is bound to that.

pub mod alert;
pub mod catalogue;
pub mod docker;
pub mod kubernetes;
pub mod log;
pub mod process;
pub mod systemd;
pub mod webhook;

use std::io;

use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use crate::{admission::Refusal, command::Command};

/// What changed, for people: before, after, marker.
pub type Effect = Map<String, Value>;

/// The world before an action, as far as the adapter needs it to recognise its own effect.
pub type Before = Map<String, Value>;

/// Brings about the effects of one kind of action.
pub trait Adapter: Send + Sync {
    /// Whether the adapter knows action and target and understands the parameters; answered before anything is claimed.
    fn knows(&self, command: &Command) -> Result<(), Refusal>;

    /// Looks at the world before anything is done. What it says is remembered with the intent.
    fn observe(&self, _command: &Command) -> Result<Before, Failure> {
        Ok(Before::new())
    }

    /// Reads the world for traces of an earlier run of this action; `before` where one meant to act.
    fn reconcile(&self, command: &Command, before: Option<&Before>) -> Reconciled;

    /// Brings the effect about. Never called when [`Adapter::reconcile`] says that it took place.
    fn act(&self, command: &Command, before: &Before) -> Result<Effect, Failure>;

    /// As [`Adapter::act`], unless the action was withdrawn before it is begun. An adapter that can stop on the way asks
    /// `wanted` while it waits and before what it cannot take back as well. [`Failure::Stopped`] says that nothing was done.
    fn act_while_wanted(
        &self,
        command: &Command,
        before: &Before,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Effect, Failure> {
        if !wanted() {
            return Err(Failure::Stopped("before it was begun".into()));
        }
        self.act(command, before)
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
        Self::coded(500, reason)
    }

    pub fn coded(code: u16, reason: impl Into<String>) -> Self {
        Self::Failed {
            code,
            reason: reason.into(),
            retryable: false,
        }
    }

    /// Nothing was done, and nothing stands against trying later.
    pub fn retryable(reason: impl Into<String>) -> Self {
        Self::Failed {
            code: 500,
            reason: reason.into(),
            retryable: true,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::coded(refusal.code, refusal.reason)
    }
}

/// What can be asked of a thing that runs or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    Restart,
    Stop,
    Start,
}

impl Lifecycle {
    /// What a command asks for; `adapter` names who cannot do anything else. There are no parameters but a reason for people: one
    /// that changes nothing would be taken for one that does.
    pub fn of(command: &Command, adapter: &str) -> Result<Self, Refusal> {
        let lifecycle = match command.kind() {
            "restart" => Self::Restart,
            "stop" => Self::Stop,
            "start" => Self::Start,
            other => {
                return Err(unknown_target(format!(
                    "the {adapter} adapter knows no action {other:?}"
                )));
            }
        };
        match command.action.action.params.keys().find(|name| *name != "reason") {
            Some(name) => Err(Refusal::rejected(
                412,
                format!("parameter {name:?} is none of this action's"),
            )),
            None => Ok(lifecycle),
        }
    }
}

/// For a client that is asynchronous: workers wait for it, one thread drives it.
fn client_runtime(name: &str) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
}

/// The adapter has no such target, or no such action for it.
pub(crate) fn unknown_target(reason: impl Into<String>) -> Refusal {
    Refusal::rejected(404, reason)
}
