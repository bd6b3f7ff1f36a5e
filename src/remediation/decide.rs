//! Considering an incident: what to do, whether the gates allow it, and saying so either way.

use protocol::{
    cloudevent, id,
    message::{
        self, Action, ActionBody, ActionCancelled, ActionTarget, Approval, ApprovalRecord, Decision, DecisionKind,
        Explain, Gate, IncidentState, Ladder, Mode, Timing, Verdict,
    },
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    Choice, Effect, Fleet, Policy,
    config::ms,
    follow::Then,
    gate::{Judgement, Retry},
    pick::NOOP,
    state::{Asked, Case, Episode, EpisodeKey, LastAction, Lock, Pending, Phase, StateKey},
};

/// What an incident would do next.
pub(crate) struct Next {
    pub kind: String,
    pub of: u32,
    /// Probability with which it was chosen; 1 where there was no choice.
    pub propensity: f64,
    pub choice: Option<message::Choice>,
}

impl Next {
    pub(crate) fn only(kind: &str, of: usize) -> Self {
        Self {
            kind: kind.to_owned(),
            of: u32::try_from(of).unwrap_or(u32::MAX),
            propensity: 1.0,
            choice: None,
        }
    }
}

impl Fleet {
    /// Looks at an open incident: acts, asks, or records why not.
    pub(crate) fn consider(&mut self, key: &EpisodeKey, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(case) = &episode.case else { return };
        let busy = case.pending.as_ref().is_some_and(|pending| !self.agreed(pending));
        if busy || case.state == IncidentState::Escalated {
            return;
        }
        let Some(policy) = self.policy(key) else {
            self.close(key, "its policy was withdrawn", out);
            return;
        };
        let Some((next, judgement)) = self.next(key, &policy, episode, case) else {
            self.give_up(key, &policy, out);
            return;
        };
        if self.agreed_to_something_else(key, &policy, &next) {
            let reason = "the policy changed after the request";
            self.withdraw_request(key, reason, out);
            self.drop_request(key);
            return self.consider(key, out);
        }
        let asked = episode.pending().is_some();
        if asked && judgement.refused.is_none() && judgement.mode <= Mode::Shadow {
            self.withdraw_request(key, "the mode no longer allows the action", out);
            self.drop_request(key);
            return self.consider(key, out);
        }
        let repeated = judgement.mode == Mode::Shadow && case.shadowed == Some((case.step, case.attempt));
        if repeated && judgement.refused_by() != Some("control") {
            self.edit_case(key, |case| case.wake_ms = None);
        } else if judgement.refused.is_some() {
            self.refuse(key, &next, judgement, out);
        } else {
            match judgement.mode {
                Mode::Off | Mode::Shadow => self.shadow(key, &policy, &next, judgement, out),
                Mode::Approve if self.needs_a_yes(episode, &next.kind) => self.ask(key, &policy, &next, judgement, out),
                Mode::Approve | Mode::Auto => self.act(key, &policy, &next, judgement, out),
            }
        }
    }

    fn agreed(&self, pending: &Pending) -> bool {
        match &pending.phase {
            Phase::Asked(asked) => {
                let (target, action) = (&pending.action.target.target, &pending.action.action);
                let quorum = self.thresholds(&target.name, &action.kind).approval_quorum;
                // Who may no longer approve has not approved.
                let counted = asked.agreed.iter().filter(|by| self.revoked(by).is_none());
                counted.count() >= quorum.max(1) as usize
            }
            _ => false,
        }
    }

    /// A grant is for exactly the proposal that was shown.
    fn agreed_to_something_else(&self, key: &EpisodeKey, policy: &Policy, next: &Next) -> bool {
        let asked = self.state.episodes.get(key).and_then(Episode::pending);
        let Some(Phase::Asked(asked)) = asked.map(|pending| &pending.phase) else {
            return false;
        };
        let Some((action_id, _)) = self.ids(key) else {
            return false;
        };
        let action = self.action(key, policy, next, action_id, Uuid::nil(), Vec::new());
        action.is_some_and(|action| action.proposal_sha256() != asked.payload_sha256)
    }

    /// Forgets a request that was withdrawn; the next one gets an id of its own.
    pub(crate) fn drop_request(&mut self, key: &EpisodeKey) {
        let target = self.edit(key, |episode| {
            let case = episode.case.as_mut()?;
            case.pending = None;
            case.attempt += 1;
            Some(episode.target.key())
        });
        if let Some(Some(target)) = target {
            self.edit_target(&target, |state| state.lock = None);
        }
    }

    /// An action that changes nothing that serves needs nobody's yes; another one needs it unless it was given.
    fn needs_a_yes(&self, episode: &Episode, kind: &str) -> bool {
        let harmless = self.config.action_class(kind).impact == crate::Impact::None;
        let given = episode.pending().is_some_and(|pending| self.agreed(pending));
        !harmless && !given
    }

    /// What the incident would do next and what the gates say of it; `None` when everything was tried.
    fn next(&self, key: &EpisodeKey, policy: &Policy, episode: &Episode, case: &Case) -> Option<(Next, Judgement)> {
        let service = &episode.target.name;
        let untired = |kind: &str| case.tries < self.thresholds(service, kind).attempts_max.max(1);
        if case.pending.is_none()
            && let Some(kind) = &case.undo
        {
            let judgement = self.judge(key, policy, episode, kind)?;
            return Some((Next::only(kind, 1), judgement));
        }
        let next = match (&case.pending, &policy.action) {
            // What a person was asked about is what is done.
            (Some(pending), _) => Next {
                kind: pending.action.action.kind.clone(),
                of: pending.action.ladder.of,
                propensity: pending.propensity,
                choice: pending.choice.clone(),
            },
            (None, Choice::Fixed(kind)) => Next::only(kind, 1),
            (None, Choice::Ladder(kinds)) => Next::only(kinds.get(case.step.checked_sub(1)? as usize)?, kinds.len()),
            (None, Choice::Choose(_)) => return self.pick(key, policy, episode, case),
        };
        if case.pending.is_none() && !untired(&next.kind) {
            return None;
        }
        let judgement = self.judge(key, policy, episode, &next.kind)?;
        Some((next, judgement))
    }

    /// Everything was tried: recorded as a refusal, then a person's.
    fn give_up(&mut self, key: &EpisodeKey, policy: &Policy, out: &mut Vec<Effect>) {
        let Some(case) = self.state.episodes.get(key).and_then(|episode| episode.case.as_ref()) else {
            return;
        };
        let values = [
            ("step", json!(case.step)),
            ("tries", json!(case.tries)),
            ("tried", json!(case.tried)),
        ];
        let judgement = Judgement {
            gates: vec![Gate {
                gate: "attempts".into(),
                passed: false,
                values: values.map(|(name, value)| (name.to_owned(), value)).into(),
            }],
            refused: Some(Retry::Never),
            mode: policy.mode,
        };
        let next = Next::only(case.tried.last().map_or("", String::as_str), 1);
        self.refuse(key, &next, judgement, out);
    }

    fn refuse(&mut self, key: &EpisodeKey, next: &Next, judgement: Judgement, out: &mut Vec<Effect>) {
        let Some(retry) = judgement.refused else { return };
        let Some(gate) = judgement.refused_by().map(str::to_owned) else {
            return;
        };
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let now_ms = self.now_ms();
        let config = self.thresholds(&episode.target.name, &next.kind);
        let (interval_ms, reconsider_ms) = (ms(config.refusal_interval), ms(config.reconsider).max(1));
        let ordinal = self.edit_case(key, |case| {
            let same = case.refused_by.as_deref() == Some(gate.as_str());
            case.refused_by = Some(gate.clone());
            let refusal = case.refusals.entry(gate.clone()).or_default();
            let new = refusal.count == 0 || !same && now_ms >= refusal.at_ms.saturating_add(interval_ms);
            if new {
                refusal.count += 1;
                refusal.at_ms = now_ms;
            }
            new.then_some(refusal.count)
        });
        if let Some(Some(ordinal)) = ordinal {
            let name = format!("refuse/{gate}/{ordinal}");
            self.say_decision(key, &name, DecisionKind::Refuse, next, &judgement, None, out);
        }
        let wake_ms = match retry {
            Retry::At(at_ms) => Some(at_ms.max(now_ms + 1)),
            Retry::Later => Some(now_ms.saturating_add(reconsider_ms)),
            Retry::Control | Retry::Never => None,
        };
        let state = match retry {
            Retry::Never => IncidentState::Escalated,
            _ => IncidentState::Suppressed,
        };
        // A request that a person granted stays granted: it is tried again until it expires.
        let waits = self
            .state
            .episodes
            .get(key)
            .is_some_and(|episode| episode.pending().is_some());
        if waits {
            let until_ms = self.asked_until(key);
            self.edit_case(key, |case| case.wake_ms = wake_ms.min(until_ms).or(until_ms));
        } else {
            self.set_state(key, state, &format!("refused by {gate}"), wake_ms, out);
        }
    }

    fn asked_until(&self, key: &EpisodeKey) -> Option<i64> {
        match &self.state.episodes.get(key)?.pending()?.phase {
            Phase::Asked(asked) => Some(asked.expires_ms),
            _ => None,
        }
    }

    /// What would have been done, had the mode allowed.
    fn shadow(&mut self, key: &EpisodeKey, policy: &Policy, next: &Next, judgement: Judgement, out: &mut Vec<Effect>) {
        let Some((action_id, name)) = self.ids(key) else { return };
        let name = format!("shadow/{name}");
        self.say_decision(key, &name, DecisionKind::Shadow, next, &judgement, Some(action_id), out);
        self.remember(key, policy, &next.kind, true);
        self.edit_case(key, |case| case.shadowed = Some((case.step, case.attempt)));
        let reason = format!("in shadow: would {}", next.kind);
        self.set_state(key, IncidentState::Suppressed, &reason, None, out);
    }

    /// Asks a person, who has until the request expires. Waiting counts as in flight.
    fn ask(&mut self, key: &EpisodeKey, policy: &Policy, next: &Next, judgement: Judgement, out: &mut Vec<Effect>) {
        let Some((action_id, name)) = self.ids(key) else { return };
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let config = self.thresholds(&episode.target.name, &next.kind);
        let (quorum, expiry_ms) = (config.approval_quorum.max(1), ms(config.approval_expiry));
        let mut judgement = judgement;
        judgement.gates.push(Gate {
            gate: "approval".into(),
            passed: false,
            values: [("quorum".to_owned(), json!(quorum))].into(),
        });
        let name = format!("ask/{name}");
        let decision_id = self.say_decision(
            key,
            &name,
            DecisionKind::AskApproval,
            next,
            &judgement,
            Some(action_id),
            out,
        );
        let Some(action) = self.action(key, policy, next, action_id, decision_id, judgement.gates) else {
            return;
        };
        let now_ms = self.now_ms();
        let asked = Asked {
            approval_id: id::derived("approval", &[&action_id.to_string()]),
            requested_ms: now_ms,
            expires_ms: now_ms.saturating_add(expiry_ms),
            payload_sha256: action.proposal_sha256(),
            agreed: Vec::new(),
        };
        let expires_ms = asked.expires_ms;
        self.lock(&action.target.key, action_id);
        self.edit(key, |episode| {
            let score = episode.latest.score;
            if let Some(case) = &mut episode.case {
                case.pending = Some(Pending {
                    topic: policy.into_topic.clone(),
                    action,
                    score,
                    propensity: next.propensity,
                    choice: next.choice.clone(),
                    phase: Phase::Asked(asked),
                });
            }
        });
        self.say_approval(key, cloudevent::APPROVAL_REQUESTED, None, None, out);
        let reason = format!("asks to {}", next.kind);
        self.set_state(key, IncidentState::AwaitingApproval, &reason, Some(expires_ms), out);
    }

    /// Publishes the command.
    fn act(&mut self, key: &EpisodeKey, policy: &Policy, next: &Next, judgement: Judgement, out: &mut Vec<Effect>) {
        let Some((action_id, name)) = self.ids(key) else { return };
        let mut judgement = judgement;
        let granted = self.state.episodes.get(key).and_then(|episode| {
            let Phase::Asked(asked) = &episode.pending()?.phase else {
                return None;
            };
            Some(asked.clone())
        });
        let values = match &granted {
            Some(asked) => [("agreed".to_owned(), json!(asked.agreed))].into(),
            None => [("required".to_owned(), json!(false))].into(),
        };
        judgement.gates.push(Gate {
            gate: "approval".into(),
            passed: true,
            values,
        });
        let name = format!("act/{name}");
        let decision_id = self.say_decision(key, &name, DecisionKind::Act, next, &judgement, Some(action_id), out);
        let Some(mut action) = self.action(key, policy, next, action_id, decision_id, judgement.gates) else {
            return;
        };
        if let Some(asked) = &granted {
            action.approval = Approval {
                required: true,
                state: "granted".into(),
                id: Some(asked.approval_id),
            };
        }
        if next.kind != NOOP {
            self.remember(key, policy, &next.kind, false);
        }
        self.lock(&action.target.key, action_id);
        let deadline_ms = action
            .timing
            .start_deadline
            .saturating_add(action.timing.exec_timeout_ms);
        if next.kind == NOOP {
            return self.wait(key, policy, next, action, out);
        }
        self.send(key, policy, next, action, decision_id, out);
        let reason = format!("sent {}", next.kind);
        self.set_state(key, IncidentState::Acting, &reason, Some(deadline_ms), out);
        self.hear_early(action_id, key, out);
    }

    /// To do nothing is a choice as well: it is watched and judged like any other, and costs no budget.
    fn wait(&mut self, key: &EpisodeKey, policy: &Policy, next: &Next, action: Action, out: &mut Vec<Effect>) {
        let topic = policy.into_topic.clone();
        self.edit(key, |episode| {
            let score = episode.latest.score;
            if let Some(case) = &mut episode.case {
                case.pending = Some(Pending {
                    action,
                    topic,
                    score,
                    propensity: next.propensity,
                    choice: next.choice.clone(),
                    phase: Phase::Started,
                });
            }
        });
        self.watch(key, false, "chose to do nothing; watching the signal", out);
    }

    fn send(
        &mut self,
        key: &EpisodeKey,
        policy: &Policy,
        next: &Next,
        action: Action,
        decision_id: Uuid,
        out: &mut Vec<Effect>,
    ) {
        self.state.clock.sequence += 1;
        self.dirty.insert(StateKey::Clock);
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let mut event = self.event(
            cloudevent::ACTION_REQUESTED,
            action.action_id,
            key,
            episode,
            action.incident_id,
        );
        event.causation_id = Some(decision_id);
        event.sequence = Some(self.state.clock.sequence);
        event.expiry_time_ms = Some(action.timing.start_deadline);
        event.mode = Some(action.mode.clone());
        let topic = policy.into_topic.clone();
        self.edit(key, |episode| {
            let score = episode.latest.score;
            if let Some(case) = &mut episode.case {
                case.actions.push(action.action_id);
                let excess = case.actions.len().saturating_sub(16);
                case.actions.drain(..excess);
                case.pending = Some(Pending {
                    action: action.clone(),
                    topic: topic.clone(),
                    score,
                    propensity: next.propensity,
                    choice: next.choice.clone(),
                    phase: Phase::Requested,
                });
            }
        });
        out.push(Effect::Action {
            topic,
            event,
            data: action,
        });
    }

    /// Id of the action that the incident's step and attempt name, and the words for them.
    fn ids(&self, key: &EpisodeKey) -> Option<(Uuid, String)> {
        let episode = self.state.episodes.get(key)?;
        let case = episode.case.as_ref()?;
        let target = episode.target.key();
        let action_id = id::action(&self.config.tenant, &target, case.id, case.step, case.attempt);
        Some((action_id, format!("{}/{}", case.step, case.attempt)))
    }

    fn action(
        &self,
        key: &EpisodeKey,
        policy: &Policy,
        next: &Next,
        action_id: Uuid,
        decision_id: Uuid,
        gates: Vec<Gate>,
    ) -> Option<Action> {
        let episode = self.state.episodes.get(key)?;
        let case = episode.case.as_ref()?;
        let now_ms = self.now_ms();
        let config = self.thresholds(&episode.target.name, &next.kind);
        Some(Action {
            action_id,
            incident_id: case.id,
            decision_id,
            attempt: case.attempt,
            ladder: Ladder {
                step: case.step,
                of: next.of,
                policy: policy.name.clone(),
            },
            action: self.body(policy, &next.kind),
            target: ActionTarget {
                key: episode.target.key(),
                target: episode.target.clone(),
            },
            timing: Timing {
                decided_at: now_ms,
                start_deadline: now_ms.saturating_add(ms(policy.expires_after)),
                exec_timeout_ms: ms(policy.exec_timeout),
                verify_after_ms: ms(policy.verify_after.unwrap_or(config.verify_after)),
                verify_for_ms: ms(policy.verify_for.unwrap_or(config.verify_for)),
            },
            mode: "live".into(),
            approval: Approval {
                required: false,
                state: "not_required".into(),
                id: None,
            },
            explain: Explain {
                policy: policy.name.clone(),
                detector: policy.detector.clone(),
                pipeline: policy.pipeline.clone(),
                score: case.opened_by.score,
                evidence: case.evidence.clone(),
                gates,
            },
        })
    }

    fn body(&self, policy: &Policy, kind: &str) -> ActionBody {
        ActionBody {
            kind: kind.to_owned(),
            version: 1,
            params: policy.params.clone(),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn say_decision(
        &mut self,
        key: &EpisodeKey,
        name: &str,
        verdict: DecisionKind,
        next: &Next,
        judgement: &Judgement,
        action_id: Option<Uuid>,
        out: &mut Vec<Effect>,
    ) -> Uuid {
        let episode = self.state.episodes.get(key);
        let Some((episode, case)) = episode.and_then(|episode| Some((episode, episode.case.as_ref()?))) else {
            return Uuid::nil();
        };
        let decision_id = id::derived("decision", &[&case.id.to_string(), name]);
        let policy = self.policy(key);
        let data = Decision {
            decision_id,
            incident_id: case.id,
            target_key: episode.target.key(),
            policy: key.policy.clone(),
            pipeline: key.pipeline.clone(),
            detector: episode.detector.clone(),
            decided_at: self.now_ms(),
            verdict,
            refused_by: judgement.refused_by().map(str::to_owned),
            gates: judgement.gates.clone(),
            mode: judgement.mode,
            action_id,
            action: policy.map(|policy| self.body(&policy, &next.kind)),
            propensity: next.propensity,
            score: case.opened_by.score,
            evidence: case.evidence.clone(),
            choice: next.choice.clone(),
        };
        let mut event = self.event(cloudevent::DECISION, decision_id, key, episode, case.id);
        event.mode = Some(
            if judgement.mode > Mode::Shadow {
                "live"
            } else {
                "shadow"
            }
            .into(),
        );
        out.push(Effect::Decision { event, data });
        decision_id
    }

    /// Counts an action in every limit that it uses up.
    fn remember(&mut self, key: &EpisodeKey, policy: &Policy, kind: &str, shadow: bool) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(case) = &episode.case else { return };
        let (now_ms, incident, target) = (self.now_ms(), case.id, episode.target.key());
        let limits_service = self.thresholds(&episode.target.name, kind).limits_service.clone();
        self.edit_target(&target, |state| {
            let action = LastAction {
                at_ms: now_ms,
                kind: kind.to_owned(),
                incident,
            };
            state.record(action, shadow, &limits_service);
        });
        let budget = self.state.budgets.entry(policy.id()).or_default();
        budget.record(now_ms, shadow, &policy.limits);
        self.state.clock.acted.record(now_ms, shadow, &self.config.limits_fleet);
        self.dirty.extend([StateKey::Budget(policy.id()), StateKey::Clock]);
    }

    fn lock(&mut self, target: &str, action_id: Uuid) {
        self.edit_target(target, |state| {
            state.lock = Some(Lock {
                action_id,
                until_ms: None,
            });
        });
    }

    /// Publishes where a request for approval stands.
    pub(crate) fn say_approval(
        &mut self,
        key: &EpisodeKey,
        kind: &str,
        by: Option<String>,
        reason: Option<String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(pending) = episode.pending() else { return };
        let Phase::Asked(asked) = &pending.phase else { return };
        let data = ApprovalRecord {
            approval_id: asked.approval_id,
            action_id: pending.action.action_id,
            incident_id: pending.action.incident_id,
            target_key: pending.action.target.key.clone(),
            payload_sha256: asked.payload_sha256.clone(),
            requested_at: asked.requested_ms,
            expires_at: asked.expires_ms,
            by,
            reason,
            action: Some(pending.action.action.clone()),
        };
        let event_id = id::derived(kind, &[&asked.approval_id.to_string()]);
        let mut event = self.event(kind, event_id, key, episode, data.incident_id);
        event.causation_id = Some(pending.action.decision_id);
        event.expiry_time_ms = Some(asked.expires_ms);
        out.push(Effect::Approval { event, data });
    }

    /// Takes back a request that nobody needs to answer any more.
    pub(crate) fn withdraw_request(&mut self, key: &EpisodeKey, reason: &str, out: &mut Vec<Effect>) {
        self.say_approval(key, cloudevent::APPROVAL_EXPIRED, None, Some(reason.to_owned()), out);
    }

    /// Takes back a command that has not started. An executor may be about to start it all the same, so the target stays
    /// locked until it says how that ended, or can no longer start.
    pub(crate) fn cancel(&mut self, key: &EpisodeKey, reason: &str, out: &mut Vec<Effect>) {
        let Some(pending) = self.state.episodes.get(key).and_then(Episode::pending) else {
            return;
        };
        let action = &pending.action;
        let until_ms = action
            .timing
            .start_deadline
            .saturating_add(action.timing.exec_timeout_ms);
        let lock = Lock {
            action_id: action.action_id,
            until_ms: Some(until_ms),
        };
        let target = action.target.key.clone();
        self.withdraw(key, reason, out);
        self.edit_target(&target, |state| state.lock = Some(lock));
    }

    /// Tells executors that a command is no longer wanted.
    pub(crate) fn withdraw(&mut self, key: &EpisodeKey, reason: &str, out: &mut Vec<Effect>) {
        let Some(episode) = self.state.episodes.get(key) else {
            return;
        };
        let Some(pending) = episode.pending() else { return };
        let action = &pending.action;
        let data = ActionCancelled {
            action_id: action.action_id,
            incident_id: action.incident_id,
            target_key: action.target.key.clone(),
            at: self.now_ms(),
            reason: reason.to_owned(),
        };
        let event_id = id::derived("cancelled", &[&action.action_id.to_string()]);
        let mut event = self.event(cloudevent::ACTION_CANCELLED, event_id, key, episode, action.incident_id);
        event.causation_id = Some(action.action_id);
        event.sequence = Some(self.state.clock.sequence);
        let topic = pending.topic.clone();
        out.push(Effect::Cancelled { topic, event, data });
    }

    /// A person has looked at these services: their breakers close and what was escalated is considered afresh.
    pub(crate) fn reset(&mut self, service: &str, by: &str, out: &mut Vec<Effect>) {
        let targets: Vec<String> = self.state.targets.keys().cloned().collect();
        for key in targets {
            let name = protocol::Target::from_key(&key).map(|target| target.name);
            if name.is_ok_and(|name| crate::config::glob(service, &name)) {
                self.edit_target(&key, |state| {
                    (state.failures, state.failed_ms, state.broken) = (0, 0, false);
                });
            }
        }
        for key in self.cases_at(service) {
            let Some(episode) = self.state.episodes.get(&key) else {
                continue;
            };
            if episode
                .case
                .as_ref()
                .is_none_or(|case| case.state != IncidentState::Escalated)
            {
                continue;
            }
            if episode.pending().is_some() {
                let reason = format!("reset by {by}: how the action ended is not known");
                self.settle_verdict(&key, Verdict::Inconclusive, &reason, Then::Escalate, out);
            }
            self.edit_case(&key, |case| {
                case.step = 1;
                case.attempt += 1;
                case.tries = 0;
                case.tried.clear();
                case.undo = None;
                // Counts stay, they name decisions; what was refused before may be said again.
                case.refusals
                    .values_mut()
                    .for_each(|refusal| refusal.at_ms = i64::MIN / 2);
                case.refused_by = None;
            });
            self.set_state(&key, IncidentState::Open, &format!("reset by {by}"), None, out);
        }
    }
}
