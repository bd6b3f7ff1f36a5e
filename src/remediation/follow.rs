//! What becomes of a command: approvals, executors' reports, and the verdict from the signal.

use protocol::{
    CloudEvent, Target, cloudevent, id,
    message::{Action, ApprovalRecord, Control, IncidentState, Outcome, OutcomeStatus, Verdict, VerdictRecord},
};

use uuid::Uuid;

use crate::{
    Choice, Effect, Fleet, Standing,
    config::ms,
    signal::event_wake,
    state::{Early, Episode, EpisodeKey, Phase, Report, StateKey, Watch, group},
};

/// Commands of which early reports are kept, and how many of each.
const EARLY_MAX: usize = 1024;
const EARLY_REPORTS_MAX: usize = 4;

/// What follows a verdict while the signal still stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next attempt or step, if the gates allow.
    GoOn,
    /// A person has to look.
    Escalate,
    /// There is nothing to heal any more.
    Close,
}

impl Fleet {
    /// Decide's time reached what an incident waited for.
    pub(crate) fn on_time(&mut self, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms();
        self.edit_case(key, |case| case.wake_ms = None);
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        match episode.pending().map(|pending| pending.phase.clone()) {
            None => self.consider(key, out),
            Some(Phase::Asked(asked)) if now_ms >= asked.expires_ms => self.expire_request(key, out),
            Some(Phase::Asked(asked)) => {
                self.edit_case(key, |case| case.wake_ms = Some(asked.expires_ms));
                self.consider(key, out);
            }
            Some(Phase::Requested) => self.lose(key, "no executor reported by the deadline", out),
            Some(Phase::Accepted | Phase::Started) => {
                self.lose(key, "the executor did not report how it ended", out);
            }
            Some(Phase::Verifying(watch)) => self.on_verify_time(key, &watch, out),
            Some(Phase::Lost) => {}
        }
    }

    pub(crate) fn on_outcome(&mut self, event: &CloudEvent, data: &Outcome, out: &mut Vec<Effect>) {
        let report = Report {
            status: data.status,
            code: data.code,
            error: data.error.clone(),
        };
        match self.index.actions.get(&data.action_id).cloned() {
            Some(key) => self.on_report(&key, &report, out),
            None if self.release(&event.subject, data) => {}
            None => self.keep_early(data.action_id, report),
        }
    }

    /// A report on a command that is not known. Where `outcomes` is read ahead of `anomalies`, it is only early.
    fn keep_early(&mut self, action_id: Uuid, report: Report) {
        if self.state.early.len() >= EARLY_MAX && !self.state.early.contains_key(&action_id) {
            let oldest = self.state.early.iter().min_by_key(|(_, early)| early.at_ms);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.state.early.remove(&oldest);
                self.dirty.insert(StateKey::Early(oldest));
            }
        }
        let at_ms = self.now_ms();
        let early = self.state.early.entry(action_id).or_insert(Early {
            at_ms,
            reports: Vec::new(),
        });
        if early.reports.len() < EARLY_REPORTS_MAX && !early.reports.contains(&report) {
            early.reports.push(report);
            self.dirty.insert(StateKey::Early(action_id));
        }
    }

    /// Hears what was reported on a command before it was published here.
    pub(crate) fn hear_early(&mut self, action_id: Uuid, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let Some(early) = self.state.early.remove(&action_id) else {
            return;
        };
        self.dirty.insert(StateKey::Early(action_id));
        for report in early.reports {
            self.on_report(key, &report, out);
        }
    }

    fn on_report(&mut self, key: &EpisodeKey, report: &Report, out: &mut Vec<Effect>) {
        let Some(phase) = self.phase(key) else { return };
        let open = matches!(phase, Phase::Requested | Phase::Accepted | Phase::Started | Phase::Lost);
        if !open {
            return;
        }
        match report.status {
            OutcomeStatus::Accepted if phase == Phase::Requested => self.set_phase(key, Phase::Accepted),
            OutcomeStatus::Started if matches!(phase, Phase::Requested | Phase::Accepted) => self.on_started(key),
            OutcomeStatus::Accepted | OutcomeStatus::Started => {}
            OutcomeStatus::Succeeded => self.watch(key, false, "the executor succeeded; watching the signal", out),
            OutcomeStatus::Unknown => self.watch(key, true, "the executor cannot say whether it acted", out),
            OutcomeStatus::Failed => self.on_failed(key, report, out),
            OutcomeStatus::Rejected => self.on_rejected(key, report, out),
            OutcomeStatus::Expired => {
                let reason = "the executor found the command expired";
                self.settle_verdict(key, Verdict::Inconclusive, reason, Then::Escalate, out);
            }
            OutcomeStatus::Cancelled => {
                let said = report.error.as_deref().unwrap_or("no reason given");
                let reason = format!("the executor did not do it: {said}");
                self.settle_verdict(key, Verdict::Superseded, &reason, Then::Escalate, out);
            }
        }
    }

    fn phase(&self, key: &EpisodeKey) -> Option<Phase> {
        Some(self.state.episodes.get(key)?.pending()?.phase.clone())
    }

    fn set_phase(&mut self, key: &EpisodeKey, phase: Phase) {
        self.edit_case(key, |case| {
            if let Some(pending) = &mut case.pending {
                pending.phase = phase;
            }
        });
    }

    fn on_started(&mut self, key: &EpisodeKey) {
        let now_ms = self.now_ms();
        self.edit_case(key, |case| {
            if let Some(pending) = &mut case.pending {
                pending.phase = Phase::Started;
                let deadline_ms = now_ms.saturating_add(pending.action.timing.exec_timeout_ms);
                case.wake_ms = case.wake_ms.max(Some(deadline_ms));
            }
        });
    }

    /// A report on a cancelled command: when it is final the target is free. Whether it was one.
    fn release(&mut self, target: &str, data: &Outcome) -> bool {
        let locked = self.state.targets.get(target).and_then(|state| state.lock.as_ref());
        let cancelled = locked.is_some_and(|lock| lock.action_id == data.action_id);
        if cancelled && data.status.terminal() {
            self.edit_target(target, |state| state.lock = None);
        }
        cancelled
    }

    /// The effect is watched from a while after the executor's report.
    pub(crate) fn watch(&mut self, key: &EpisodeKey, unsure: bool, reason: &str, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms();
        let from_to = self.edit(key, |episode| {
            let pending = episode.case.as_mut()?.pending.as_mut()?;
            let timing = &pending.action.timing;
            let from_ms = now_ms.saturating_add(timing.verify_after_ms);
            let to_ms = from_ms.saturating_add(timing.verify_for_ms);
            pending.phase = Phase::Verifying(Watch {
                from_ms,
                to_ms,
                unsure,
                seen: 0,
                last: None,
                last_meets: false,
            });
            episode.event_wake_ms = Some(to_ms);
            Some(from_ms)
        });
        let Some(Some(from_ms)) = from_to else { return };
        self.set_state(key, IncidentState::Verifying, reason, Some(from_ms), out);
    }

    fn on_failed(&mut self, key: &EpisodeKey, report: &Report, out: &mut Vec<Effect>) {
        let said = report.error.as_deref().unwrap_or("no reason given");
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        if episode.clear {
            let reason = format!("the signal cleared though the executor failed: {said}");
            self.settle_verdict(key, Verdict::Superseded, &reason, Then::GoOn, out);
        } else {
            let reason = format!("the executor failed: {said}");
            self.settle_verdict(key, Verdict::Unchanged, &reason, Then::GoOn, out);
        }
    }

    /// The executor refused: nothing was done. What follows depends on why.
    fn on_rejected(&mut self, key: &EpisodeKey, report: &Report, out: &mut Vec<Effect>) {
        let said = report.error.as_deref().unwrap_or("no reason given");
        let reason = format!("the executor rejected it ({}): {said}", report.code);
        let then = match report.code {
            404 => Then::Close,
            // Already healed, paused, or over the executor's own budget: the signal and time will tell.
            409 | 423 | 429 => Then::GoOn,
            _ => Then::Escalate,
        };
        self.settle_verdict(key, Verdict::Inconclusive, &reason, then, out);
    }

    /// A person takes a command back. What has not begun is settled at once, and the incident is that person's from then on.
    /// What has begun may still be stopped, and its executor says which of the two it was. What is done stays done.
    pub(crate) fn on_cancel(&mut self, action_id: Uuid, by: &str, why: &str, out: &mut Vec<Effect>) {
        let key = self.index.actions.get(&action_id).cloned();
        let phase = key.as_ref().and_then(|key| self.phase(key));
        let (Some(key), Some(phase)) = (key, phase) else {
            out.push(Effect::Unusable(format!(
                "cancel {action_id}: nothing is on its way under this id"
            )));
            return;
        };
        let reason = match why {
            "" => format!("cancelled by {by}"),
            why => format!("cancelled by {by}: {why}"),
        };
        match phase {
            Phase::Asked(_) => {
                self.withdraw_request(&key, &reason, out);
                self.drop_request(&key);
                self.escalate(&key, &reason, out);
            }
            Phase::Requested | Phase::Accepted => {
                self.cancel(&key, &reason, out);
                self.settle_verdict(&key, Verdict::Superseded, &reason, Then::Escalate, out);
            }
            Phase::Started => self.withdraw(&key, &reason, out),
            Phase::Verifying(_) | Phase::Lost => {
                out.push(Effect::Unusable(format!(
                    "cancel {action_id}: too late, it has been carried out or lost"
                )));
            }
        }
    }

    /// Nobody said how the command ended: a person has to look, and the target stays locked.
    fn lose(&mut self, key: &EpisodeKey, reason: &str, out: &mut Vec<Effect>) {
        self.set_phase(key, Phase::Lost);
        self.set_state(key, IncidentState::Escalated, reason, None, out);
        if self.state.episodes.get(key).is_some_and(|episode| episode.clear) {
            let reason = format!("the signal cleared, but {reason}");
            self.settle_verdict(key, Verdict::Inconclusive, &reason, Then::Escalate, out);
        }
    }

    fn escalate(&mut self, key: &EpisodeKey, reason: &str, out: &mut Vec<Effect>) {
        self.set_state(key, IncidentState::Escalated, reason, None, out);
    }

    fn on_verify_time(&mut self, key: &EpisodeKey, watch: &Watch, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let clear = episode.clear;
        let kind = episode.pending().map_or("*", |pending| &pending.action.action.kind);
        let lag_max_ms = ms(self.thresholds(&episode.target.name, kind).telemetry_lag_max);
        let late_ms = watch.to_ms.saturating_add(lag_max_ms);
        if clear {
            self.look_at_signal(key, out);
        } else if self.now_ms() >= late_ms {
            self.judge_effect(key, out);
        } else {
            self.edit_case(key, |case| case.wake_ms = Some(late_ms));
        }
    }

    /// Recovered as soon as the signal is clear and the effect has had its time to show.
    pub(crate) fn look_at_signal(&mut self, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms();
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(Phase::Verifying(watch)) = episode.pending().map(|pending| &pending.phase) else {
            // The signal came again: an incident that was refused is considered once more.
            return self.consider(key, out);
        };
        if !episode.clear {
            return;
        }
        if now_ms >= watch.from_ms {
            let reason = "the signal cleared after the action";
            self.settle_verdict(key, Verdict::Recovered, reason, Then::GoOn, out);
        } else {
            let from_ms = watch.from_ms;
            self.edit_case(key, |case| case.wake_ms = Some(from_ms));
        }
    }

    /// The time for the effect to show is over.
    pub(crate) fn judge_effect(&mut self, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(pending) = episode.pending() else { return };
        let Phase::Verifying(watch) = &pending.phase else {
            return;
        };
        let advanced = self
            .watermark_ms()
            .is_some_and(|watermark_ms| watermark_ms >= watch.to_ms);
        let latched = self.policy(key).is_some_and(|policy| policy.latched);
        let action = &pending.action;
        let worse_ratio = self
            .thresholds(&action.target.target.name, &action.action.kind)
            .worse_ratio;
        let (verdict, reason) = if episode.clear {
            (Verdict::Recovered, "the signal cleared after the action".to_owned())
        } else if !advanced {
            (Verdict::Inconclusive, "telemetry did not advance".to_owned())
        } else if !episode.telemetry_healthy {
            (
                Verdict::Inconclusive,
                "the telemetry of the target is not alive".to_owned(),
            )
        } else {
            match &watch.last {
                None if latched => (Verdict::Unchanged, "the alarm still stands".to_owned()),
                None => (
                    Verdict::Inconclusive,
                    "the signal said nothing after the action".to_owned(),
                ),
                Some(last) if !watch.last_meets => {
                    let reason = format!("score {:.3} no longer meets WHEN, but has not cleared", last.score);
                    (Verdict::Improved, reason)
                }
                Some(last) if last.score >= pending.score * worse_ratio => (
                    Verdict::Worse,
                    format!("score rose from {:.3} to {:.3}", pending.score, last.score),
                ),
                Some(last) => (
                    Verdict::Unchanged,
                    format!(
                        "score went from {:.3} to {:.3} and still meets WHEN",
                        pending.score, last.score
                    ),
                ),
            }
        };
        let then = match (verdict, watch.unsure) {
            (Verdict::Worse, _) | (_, true) => Then::Escalate,
            _ => Then::GoOn,
        };
        self.settle_verdict(key, verdict, &reason, then, out);
    }

    /// Says the verdict, frees the target, and goes on: closed when the signal is clear, else as told.
    pub(crate) fn settle_verdict(
        &mut self,
        key: &EpisodeKey,
        verdict: Verdict,
        reason: &str,
        then: Then,
        out: &mut Vec<Effect>,
    ) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(pending) = episode.pending().cloned() else {
            return;
        };
        let clear = episode.clear;
        let confounder = self
            .confounder(&pending.action)
            .filter(|_| verdict == Verdict::Recovered);
        let (verdict, reason) = match &confounder {
            Some(other) => (Verdict::Confounded, format!("{reason}, but {other}")),
            None => (verdict, reason.to_owned()),
        };
        let reason = reason.as_str();
        let (undoes, undo) = self.undo_of(key, &pending.action, verdict);
        let then = match undo {
            _ if undoes => Then::Escalate,
            Some(_) => Then::GoOn,
            None => then,
        };
        let sent = !matches!(pending.phase, Phase::Asked(_));
        self.say_verdict(key, &pending.phase, verdict, reason, out);
        self.free(&pending.action.target.key, pending.action.action_id);
        if sent {
            self.learn(key, verdict, &pending.action);
        }
        if matches!(pending.phase, Phase::Verifying(_)) {
            let fits = pending.choice.as_ref().and_then(|choice| choice.fits.as_deref());
            self.experience(key, &pending.action, fits, verdict);
        }
        self.next_step(key, &pending.action.action.kind);
        self.edit_case(key, |case| case.undo = undo.filter(|_| !undoes));
        self.rest_after(key);
        match then {
            _ if matches!(verdict, Verdict::Recovered | Verdict::Confounded) => self.close_healed(key, reason, out),
            _ if clear => self.close(key, reason, out),
            Then::Close => self.close(key, reason, out),
            Then::Escalate => self.escalate(key, reason, out),
            Then::GoOn => {
                self.set_state(key, IncidentState::Open, reason, None, out);
                self.consider(key, out);
            }
        }
    }

    /// Whether this action took another back, and what would take this one back now that it made things worse.
    fn undo_of(&self, key: &EpisodeKey, action: &Action, verdict: Verdict) -> (bool, Option<String>) {
        let case = self.state.episodes.get(key).and_then(|episode| episode.case.as_ref());
        let undoes = case.is_some_and(|case| case.undo.as_ref() == Some(&action.action.kind));
        let undo = self.config.action_class(&action.action.kind).undo;
        (undoes, undo.filter(|_| verdict == Verdict::Worse))
    }

    /// Something else that may have healed the signal: an action on a service that this one calls, or that calls it,
    /// since this action was decided.
    fn confounder(&self, action: &Action) -> Option<String> {
        let own = &action.target.target.name;
        let since_ms = action.timing.decided_at;
        let neighbours = self.state.targets.iter().filter_map(|(key, state)| {
            let last = state.last.as_ref().filter(|last| last.at_ms >= since_ms)?;
            let name = Target::from_key(key).ok()?.name;
            let near = name != *own
                && (self.callees(own).any(|callee| callee == name) || self.callees(&name).any(|callee| callee == own));
            near.then(|| format!("{} had a {} meanwhile", name, last.kind))
        });
        neighbours.into_iter().next()
    }

    /// With nothing on its way any more, the end of the signal ends the incident again.
    fn rest_after(&mut self, key: &EpisodeKey) {
        let Some(policy) = self.policy(key) else { return };
        self.edit(key, |episode| episode.event_wake_ms = event_wake(episode, &policy));
    }

    fn say_verdict(&mut self, key: &EpisodeKey, phase: &Phase, verdict: Verdict, reason: &str, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(pending) = episode.pending() else { return };
        let action = &pending.action;
        let now_ms = self.now_ms();
        let (from_ms, score_after) = match phase {
            Phase::Verifying(watch) => (watch.from_ms, watch.last.map(|window| window.score)),
            _ => (action.timing.decided_at, None),
        };
        let data = VerdictRecord {
            action_id: action.action_id,
            incident_id: action.incident_id,
            target_key: action.target.key.clone(),
            verdict,
            from: from_ms,
            to: now_ms.max(from_ms),
            score_before: pending.score,
            score_after,
            reason: reason.to_owned(),
        };
        let event_id = id::derived("verdict", &[&action.action_id.to_string()]);
        let mut event = self.event(cloudevent::VERDICT, event_id, key, episode, action.incident_id);
        event.causation_id = Some(action.action_id);
        out.push(Effect::Verdict { event, data });
    }

    /// Frees the target unless the lock was given its own end: a cancelled command may still be started by accident.
    fn free(&mut self, target: &str, action_id: Uuid) {
        self.edit_target(target, |state| {
            let lock = state.lock.as_ref();
            if lock.is_some_and(|lock| lock.action_id == action_id && lock.until_ms.is_none()) {
                state.lock = None;
            }
        });
    }

    /// Only clear verdicts count: for the service's breaker, and for how far the detector's alarms may be trusted.
    fn learn(&mut self, key: &EpisodeKey, verdict: Verdict, action: &Action) {
        let now_ms = self.now_ms();
        let failed = match verdict {
            Verdict::Recovered => false,
            Verdict::Unchanged | Verdict::Worse => true,
            _ => return,
        };
        let config = self.thresholds(&action.target.target.name, &action.action.kind);
        let target = action.target.key.as_str();
        let forgotten = self
            .state
            .targets
            .get(target)
            .is_some_and(|state| self.failures(state, &config) == 0);
        let (max, forget_ms) = (config.breaker_failures, ms(config.breaker_forget));
        self.edit_target(target, |state| {
            if failed {
                state.failures = if forgotten { 1 } else { state.failures + 1 };
                state.failed_ms = now_ms;
                state.broken = max > 0 && state.failures >= max;
                state.keep(now_ms, forget_ms);
            } else {
                (state.failures, state.failed_ms, state.broken) = (0, 0, false);
            }
        });
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let group = group(&key.pipeline, &episode.detector);
        let precision = self.state.precision.entry(group.clone()).or_default();
        precision.judged = precision.judged.saturating_add(1);
        precision.healed = precision.healed.saturating_add(u32::from(!failed));
        self.dirty.insert(StateKey::Precision(group));
    }

    /// Moves the incident past the action: a ladder never takes a step twice, a fixed action counts its attempts.
    fn next_step(&mut self, key: &EpisodeKey, kind: &str) {
        let ladder = self
            .policy(key)
            .is_some_and(|policy| !matches!(policy.action, Choice::Fixed(_)));
        self.edit_case(key, |case| {
            case.pending = None;
            case.shadowed = None;
            if !case.tried.iter().any(|tried| tried == kind) {
                case.tried.push(kind.to_owned());
            }
            if ladder {
                case.step += 1;
                case.tries = 0;
            } else {
                case.attempt += 1;
                case.tries += 1;
            }
        });
    }

    pub(crate) fn on_approval(
        &mut self,
        event: &CloudEvent,
        data: &ApprovalRecord,
        standing: Standing<'_>,
        out: &mut Vec<Effect>,
    ) {
        let granted = match event.kind.as_str() {
            cloudevent::APPROVAL_GRANTED => true,
            cloudevent::APPROVAL_DENIED => false,
            _ => return,
        };
        let by = data.by.clone().unwrap_or_default();
        if by.is_empty() {
            out.push(Effect::Unusable(format!("answer {} does not say by whom", event.id)));
            return;
        }
        if let Standing::Refused(why) = standing {
            return self.say_refused(event, data, why, out);
        }
        if let Some(who) = self.revoked(&by) {
            let why = format!("{by} may no longer approve, says {who}");
            return self.say_refused(event, data, &why, out);
        }
        let key = self.index.actions.get(&data.action_id).cloned();
        let asked = key
            .as_ref()
            .and_then(|key| self.phase(key))
            .and_then(|phase| match phase {
                Phase::Asked(asked) => Some(asked),
                _ => None,
            });
        let (Some(key), Some(asked)) = (key, asked) else {
            let why = format!("the answer of {by} came too late: nothing waits for this answer");
            return self.say_of_answer(cloudevent::APPROVAL_EXPIRED, event, data, why, out);
        };
        if asked.approval_id != data.approval_id || asked.payload_sha256 != data.payload_sha256 {
            return self.say_refused(event, data, "it is to another proposal", out);
        }
        if let Err(why) = self.has_role(&key, &by, standing) {
            return self.say_refused(event, data, &why, out);
        }
        if !granted {
            let why = data.reason.as_deref().unwrap_or("no reason given");
            let reason = format!("denied by {by}: {why}");
            self.drop_request(&key);
            return self.escalate(&key, &reason, out);
        }
        self.edit_case(&key, |case| {
            let pending = case.pending.as_mut();
            if let Some(Phase::Asked(asked)) = pending.map(|pending| &mut pending.phase)
                && !asked.agreed.contains(&by)
            {
                asked.agreed.push(by);
            }
        });
        // The world may have moved while the person thought: every gate is asked again.
        self.consider(&key, out);
    }

    /// Whether the approver has a role that the request asks for.
    fn has_role(&self, key: &EpisodeKey, by: &str, standing: Standing<'_>) -> Result<(), String> {
        let pending = self.state.episodes.get(key).and_then(Episode::pending);
        let Some(action) = pending.map(|pending| &pending.action) else {
            return Ok(());
        };
        let config = self.thresholds(&action.target.target.name, &action.action.kind);
        let roles: &[String] = match standing {
            Standing::Approver(approver) => &approver.roles,
            _ => &[],
        };
        let fits = |wanted: &String| roles.contains(wanted);
        match config.approval_roles.is_empty() || config.approval_roles.iter().any(fits) {
            true => Ok(()),
            false => Err(format!(
                "{by} has none of the roles {}",
                config.approval_roles.join(", ")
            )),
        }
    }

    /// Who took an approver's right away, if somebody did.
    pub(crate) fn revoked(&self, approver: &str) -> Option<&str> {
        match self.state.controls.get(&format!("approver/{approver}")) {
            Some(Control::Approver { revoked: true, by, .. }) => Some(by),
            _ => None,
        }
    }

    fn say_refused(&mut self, answer: &CloudEvent, data: &ApprovalRecord, why: &str, out: &mut Vec<Effect>) {
        let by = data.by.as_deref().unwrap_or("somebody");
        let why = format!("the answer of {by} does not count: {why}");
        self.say_of_answer(cloudevent::APPROVAL_REFUSED, answer, data, why, out);
    }

    /// An answer that does not count is shown as such, and the request stands as it did.
    fn say_of_answer(
        &mut self,
        kind: &str,
        answer: &CloudEvent,
        data: &ApprovalRecord,
        why: String,
        out: &mut Vec<Effect>,
    ) {
        let event_id = id::derived(kind, &[&data.approval_id.to_string(), &answer.id.to_string()]);
        let mut event = CloudEvent::new(
            event_id,
            &self.config.tenant,
            &format!("/homeostat/{}", self.config.tenant),
            kind,
            &data.target_key,
            answer.time_ms,
        );
        event.recorded_time_ms = Some(self.now_ms());
        event.correlation_id = Some(data.incident_id);
        event.causation_id = Some(answer.id);
        event.traceparent = Some(id::traceparent(data.incident_id, event_id));
        let data = ApprovalRecord {
            reason: Some(why),
            ..data.clone()
        };
        out.push(Effect::Approval { event, data });
    }

    fn expire_request(&mut self, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let reason = "nobody answered in time";
        self.withdraw_request(key, reason, out);
        self.drop_request(key);
        self.escalate(key, reason, out);
    }
}
