//! One command from arrival to its final report: the executor's algorithm, top to bottom.
//!
//! Owns the order of the steps. Promises at most one effect per action id and exactly one final report per action,
//! said again as often as it is asked for. Does not know Kafka; the ledger, the control topic, the adapters and the
//! reports are behind seams. Fails only when it cannot say or remember something; then nothing was committed, and the
//! command comes again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use protocol::message::Outcome;
use uuid::Uuid;

use crate::{
    Error,
    adapter::{Adapter, Before, Failure, Reconciled},
    admission::{self, Limits, Refusal},
    allow::{self, AdapterKind, Allow, Denied, Unlisted},
    budget::Bounds,
    command::{Addressee, Command, Malformed},
    control::ControlView,
    crash::{Crash, CrashPoint},
    ledger::{Claim, Entry, Ledger, Starting, State},
    report::{Identity, Reporter, Statement},
    watch::Watch,
};

/// Reads the `control` topic to its end, whenever it is asked.
pub trait ControlSource: Send + Sync {
    /// Everything said on the topic before the call; `None` when the broker does not answer in time.
    /// [`Error::Stopped`] when nobody waits for the answer any more.
    fn current(&self) -> Result<Option<Arc<ControlView>>, Error>;
}

/// Names the adapter of a permission: a webhook has one per endpoint.
pub type AdapterKey = (AdapterKind, Option<String>);

/// Withdrawn actions that may still be waiting in a queue, or under way.
#[derive(Debug, Default)]
pub struct Cancellations(Mutex<BTreeMap<Uuid, String>>);

impl Cancellations {
    pub fn insert(&self, action: Uuid, reason: String) {
        self.lock().insert(action, reason);
    }

    pub fn remove(&self, action: Uuid) {
        self.lock().remove(&action);
    }

    /// Nothing waits any more: who reads the commands next reads what withdraws them as well.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn reason(&self, action: Uuid) -> Option<String> {
        self.lock().get(&action).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, String>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Who carries a command out, and under whose breaker.
struct Permitted<'a> {
    adapter: &'a dyn Adapter,
    lane: String,
}

/// Carries commands out.
pub struct Worker {
    pub identity: Identity,
    pub limits: Limits,
    pub bounds: Bounds,
    pub allow: Vec<Allow>,
    pub unlisted: Unlisted,
    pub adapters: BTreeMap<AdapterKey, Box<dyn Adapter>>,
    pub ledger: Ledger,
    pub control: Box<dyn ControlSource>,
    pub cancelled: Cancellations,
    pub reporter: Box<dyn Reporter>,
    pub watch: Watch,
    /// For tests only: where to die.
    pub crash: Crash,
    pub now_ms: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl Worker {
    /// From arrival to final report. When it returns, the command's offset may be committed.
    pub fn carry_out(&self, command: &Command) -> Result<(), Error> {
        self.crash.alive()?;
        let since_ms = (self.now_ms)();
        let to = Addressee::from(command);
        if self.unlisted == Unlisted::Ignore
            && let Err(Denied::Unlisted(reason)) = allow::permit(&self.allow, command)
        {
            tracing::debug!(action_id = %command.id(), target = %to.target_key, reason, "left to other executors");
            return Ok(());
        }
        let tenant = &command.action.target.target.tenant;
        if *tenant != self.identity.tenant {
            let reason = format!(
                "the command is of tenant {tenant:?}, this executor of {:?}",
                self.identity.tenant
            );
            return self.reject(&to, Refusal::rejected(401, reason));
        }
        let permitted = self.permit(command);
        if command.action.mode != "live" {
            tracing::info!(
                action_id = %command.id(), mode = %command.action.mode, target = %to.target_key,
                would = permitted.as_ref().err().map_or("act", |_| "refuse"), "command is not live; nothing is done"
            );
            return Ok(());
        }
        let outcome = match self.ledger.find(command.id())? {
            Some(entry) if entry.payload_sha256 != command.payload_sha256 => {
                let reason = format!("the id was used before with data of SHA-256 {}", entry.payload_sha256);
                return self.reject(&to, Refusal::rejected(422, reason));
            }
            Some(Entry {
                state: State::Done { outcome },
                ..
            }) => return self.repeat(&to, &outcome),
            Some(Entry {
                state: State::Intent { before, .. },
                ..
            }) => self.resume(command, &to, permitted, before)?,
            Some(Entry {
                state: State::Claimed, ..
            })
            | None => match permitted {
                Ok(permitted) => self.begin(command, &to, permitted)?,
                Err(refusal) => self.finish(command, &to, refusal.into())?,
            },
        };
        self.watch.finished(command, &outcome, since_ms);
        Ok(())
    }

    /// Answers what is no command, or nobody's whom this executor trusts, where somebody waits for an answer. Of an action
    /// that was taken on by a good command nothing is said: a forged copy must not speak for it.
    pub fn answer_malformed(&self, malformed: &Malformed) -> Result<(), Error> {
        match &malformed.addressee {
            Some(to) if self.ledger.find(to.action_id)?.is_none() => {
                self.reject(to, Refusal::rejected(412, malformed.reason.clone()))
            }
            _ => Ok(()),
        }
    }

    fn permit(&self, command: &Command) -> Result<Permitted<'_>, Refusal> {
        let allow = allow::permit(&self.allow, command).map_err(|denied| match denied {
            Denied::Unlisted(reason) | Denied::OutOfBounds(reason) => Refusal::rejected(403, reason),
        })?;
        let adapter = self
            .adapters
            .get(&(allow.adapter, allow.endpoint.clone()))
            .ok_or_else(|| Refusal::rejected(403, "the allow-list names an adapter that is not configured"))?;
        adapter.knows(command)?;
        let endpoint = allow.endpoint.as_deref().map(|name| format!(" {name}"));
        Ok(Permitted {
            adapter: adapter.as_ref(),
            lane: format!(
                "{} by {}{}",
                command.kind(),
                allow.adapter.as_str(),
                endpoint.unwrap_or_default()
            ),
        })
    }

    fn begin(&self, command: &Command, to: &Addressee, permitted: Permitted<'_>) -> Result<Outcome, Error> {
        let adapter = permitted.adapter;
        if let Err(refusal) = self.admit(command)? {
            return self.finish(command, to, refusal.into());
        }
        if let Claim::Fenced { highest } = self.ledger.claim(command.id(), self.entry(command))? {
            return self.finish(command, to, admission::fenced(command.sequence, highest).into());
        }
        self.crash.reach(CrashPoint::AfterClaim)?;
        tracing::info!(
            action_id = %command.id(), action = command.kind(), target = %to.target_key,
            trace_id = %command.action.incident_id.simple(), "command accepted"
        );
        self.announce(to, Statement::accepted());
        // The ledger may have been lost, or another executor may have been here: the world knows better.
        match adapter.reconcile(command, None) {
            Reconciled::Done(effect) => return self.finish(command, to, Statement::succeeded(effect)),
            Reconciled::Failed(failure) => return self.finish(command, to, failure.into()),
            Reconciled::NotDone | Reconciled::Repeatable | Reconciled::Unknown(_) => {}
        }
        match adapter.observe(command) {
            // Looking may have taken a while.
            Ok(before) => match self.start(command, &permitted.lane, before.clone())? {
                Ok(()) => self.act(command, to, adapter, &before, false),
                Err(refusal) => self.finish(command, to, refusal.into()),
            },
            Err(failure) => self.finish(command, to, failure.into()),
        }
    }

    /// The predecessor meant to act and did not say how it ended.
    fn resume(
        &self,
        command: &Command,
        to: &Addressee,
        permitted: Result<Permitted<'_>, Refusal>,
        before: Before,
    ) -> Result<Outcome, Error> {
        let Permitted { adapter, lane } = match permitted {
            Ok(permitted) => permitted,
            Err(refusal) => {
                let reason = format!(
                    "begun before the executor was restarted, and no longer allowed: {}",
                    refusal.reason
                );
                return self.finish(command, to, Statement::unknown(reason));
            }
        };
        let found = adapter.reconcile(command, Some(&before));
        tracing::info!(action_id = %command.id(), target = %to.target_key, ?found, "reconciled an unfinished action");
        let refusal = match found {
            Reconciled::Done(effect) => return self.finish(command, to, Statement::succeeded(effect)),
            Reconciled::Failed(failure) => return self.finish(command, to, failure.into()),
            Reconciled::Unknown(reason) => return self.finish(command, to, Statement::unknown(reason)),
            Reconciled::NotDone | Reconciled::Repeatable => match self.start(command, &lane, before.clone())? {
                Ok(()) => {
                    let begun = found == Reconciled::Repeatable;
                    return self.act(command, to, adapter, &before, begun);
                }
                Err(refusal) => refusal,
            },
        };
        let statement = match found {
            Reconciled::Repeatable => Statement::unknown(format!(
                "begun before the executor was restarted, and may not be repeated: {}",
                refusal.reason
            )),
            _ => refusal.into(),
        };
        self.finish(command, to, statement)
    }

    /// Whether the command may start now, by everybody's word and by the executor's own bounds. If so, that it does is
    /// written down.
    fn start(&self, command: &Command, lane: &str, before: Before) -> Result<Result<(), Refusal>, Error> {
        if let Err(refusal) = self.admit(command)? {
            return Ok(Err(refusal));
        }
        let starting = Starting {
            action: command.id(),
            kind: command.kind(),
            service: command.service(),
            lane,
            before,
        };
        let started = self.ledger.start(starting, self.entry(command), &self.bounds)?;
        match &started {
            Ok(()) => self.crash.reach(CrashPoint::AfterIntent)?,
            Err(refusal) => self.watch.bounded(command.kind(), &refusal.reason),
        }
        Ok(started)
    }

    /// `begun` when an earlier run may have had the effect.
    fn act(
        &self,
        command: &Command,
        to: &Addressee,
        adapter: &dyn Adapter,
        before: &Before,
        begun: bool,
    ) -> Result<Outcome, Error> {
        self.announce(to, Statement::started());
        let wanted = || self.cancelled.reason(command.id()).is_none();
        let acted = adapter.act_while_wanted(command, before, &wanted);
        self.crash.reach(CrashPoint::AfterAct)?;
        let statement = match acted {
            Ok(effect) => Statement::succeeded(effect),
            Err(Failure::Stopped(reason)) if begun => Statement::unknown(format!(
                "begun before the executor was restarted, then withdrawn {reason}"
            )),
            Err(failure) => failure.into(),
        };
        self.finish(command, to, statement)
    }

    /// Whether the command may start now. While the control topic cannot be read nothing starts: the command waits, and
    /// expires when its time comes.
    fn admit(&self, command: &Command) -> Result<Result<(), Refusal>, Error> {
        loop {
            if let Some(reason) = self.cancelled.reason(command.id()) {
                return Ok(Err(Refusal::cancelled(reason)));
            }
            let highest = self.ledger.highest(&command.action.target.key)?;
            let control = self.control.current()?;
            let known = control.is_some();
            // The clock is read last: waiting for control may have taken a while.
            let now_ms = (self.now_ms)();
            let admitted = admission::admit(command, &control.unwrap_or_default(), highest, self.limits, now_ms);
            if known || admitted.is_err() {
                return Ok(admitted);
            }
            tracing::warn!(action_id = %command.id(), "the control topic cannot be read; the command waits");
        }
    }

    /// A final word on an action that the ledger must not learn of: it is not ours, or the id is another command's.
    fn reject(&self, to: &Addressee, refusal: Refusal) -> Result<(), Error> {
        let outcome = self.identity.outcome(to, refusal.into(), (self.now_ms)());
        self.say(to, &outcome)
    }

    /// Remembers the final word, then says it.
    fn finish(&self, command: &Command, to: &Addressee, statement: Statement) -> Result<Outcome, Error> {
        let outcome = self.identity.outcome(to, statement, (self.now_ms)());
        self.ledger.finish(command.id(), self.entry(command), &outcome)?;
        self.crash.reach(CrashPoint::BeforeOutcome)?;
        self.say(to, &outcome)?;
        Ok(outcome)
    }

    fn repeat(&self, to: &Addressee, outcome: &Outcome) -> Result<(), Error> {
        tracing::info!(action_id = %outcome.action_id, target = %to.target_key, "command came again; its outcome is repeated");
        self.say(to, outcome)
    }

    fn say(&self, to: &Addressee, outcome: &Outcome) -> Result<(), Error> {
        self.reporter.publish(self.identity.event(to, outcome))?;
        self.watch.said(outcome);
        tracing::info!(
            action_id = %outcome.action_id, target = %to.target_key, status = outcome.status.as_str(),
            code = outcome.code, error = outcome.error.as_deref(), trace_id = %outcome.incident_id.simple(), "outcome"
        );
        Ok(())
    }

    fn announce(&self, to: &Addressee, statement: Statement) {
        let outcome = self.identity.outcome(to, statement, (self.now_ms)());
        self.reporter.announce(self.identity.event(to, &outcome));
    }

    fn entry(&self, command: &Command) -> Entry {
        let target_key = &command.action.target.key;
        self.ledger
            .entry(&command.payload_sha256, target_key, command.sequence, (self.now_ms)())
    }
}

#[cfg(test)]
mod tests;
