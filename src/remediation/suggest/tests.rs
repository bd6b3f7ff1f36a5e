use protocol::{
    id,
    message::{ActionBody, Mode},
};

use super::*;

/// One incident at cart: what was decided in which mode, and what came of it.
struct Past {
    decisions: Vec<Decision>,
    verdicts: Vec<VerdictRecord>,
    denied: BTreeSet<Uuid>,
}

impl Past {
    fn new() -> Self {
        Self {
            decisions: Vec::new(),
            verdicts: Vec::new(),
            denied: BTreeSet::new(),
        }
    }

    fn incident(&mut self, mode: Mode, kinds: &[DecisionKind], verdict: Option<Verdict>) -> Uuid {
        let at = self.decisions.len().to_string();
        let action_id = id::derived("action", &[&at]);
        for kind in kinds {
            self.decisions.push(Decision {
                decision_id: id::derived("decision", &[&at, &format!("{kind:?}")]),
                incident_id: id::derived("incident", &[&at]),
                target_key: Target::service("shop", "cart").key(),
                policy: "heal".into(),
                pipeline: "shop".into(),
                detector: "slow".into(),
                decided_at: 0,
                verdict: *kind,
                refused_by: None,
                gates: Vec::new(),
                mode,
                action_id: Some(action_id),
                action: Some(ActionBody {
                    kind: "restart".into(),
                    version: 1,
                    params: serde_json::Map::new(),
                }),
                propensity: 1.0,
                score: 2.0,
                evidence: Vec::new(),
                choice: None,
            });
        }
        self.verdicts.extend(verdict.map(|verdict| VerdictRecord {
            action_id,
            incident_id: id::derived("incident", &[&at]),
            target_key: Target::service("shop", "cart").key(),
            verdict,
            from: 0,
            to: 0,
            score_before: 2.0,
            score_after: None,
            reason: String::new(),
        }));
        action_id
    }

    fn suggested(&self) -> Vec<(Mode, Mode)> {
        let suggested = suggest(&self.decisions, &self.verdicts, &self.denied);
        suggested.iter().map(|found| (found.from, found.to)).collect()
    }
}

const ASKED: [DecisionKind; 2] = [DecisionKind::AskApproval, DecisionKind::Act];

#[test]
fn what_would_have_acted_often_enough_may_ask() {
    let mut past = Past::new();
    for _ in 1..SHADOWED_MIN {
        past.incident(Mode::Shadow, &[DecisionKind::Shadow], None);
    }
    assert_eq!(past.suggested(), [], "too few");
    past.incident(Mode::Shadow, &[DecisionKind::Shadow], None);
    assert_eq!(past.suggested(), [(Mode::Shadow, Mode::Approve)]);
    past.incident(Mode::Approve, &[DecisionKind::AskApproval], None);
    assert_eq!(past.suggested(), [], "it asks already");
}

#[test]
fn what_people_always_granted_and_healed_may_act_by_itself() {
    let mut past = Past::new();
    for _ in 0..30 {
        past.incident(Mode::Approve, &ASKED, Some(Verdict::Recovered));
    }
    past.incident(Mode::Approve, &ASKED, Some(Verdict::Confounded));
    assert_eq!(past.suggested(), [(Mode::Approve, Mode::Auto)]);
    let denied = past.incident(Mode::Approve, &[DecisionKind::AskApproval], None);
    past.denied.insert(denied);
    assert_eq!(past.suggested(), [], "somebody said no");
}

#[test]
fn what_does_not_heal_is_not_trusted() {
    let mut past = Past::new();
    for _ in 0..15 {
        past.incident(Mode::Approve, &ASKED, Some(Verdict::Recovered));
        past.incident(Mode::Approve, &ASKED, Some(Verdict::Unchanged));
    }
    assert_eq!(past.suggested(), []);
    let mut past = Past::new();
    for _ in 0..10 {
        past.incident(Mode::Auto, &[DecisionKind::Act], Some(Verdict::Unchanged));
        past.incident(Mode::Auto, &[DecisionKind::Act], Some(Verdict::Worse));
    }
    past.incident(Mode::Auto, &[DecisionKind::Act], Some(Verdict::Recovered));
    assert_eq!(past.suggested(), [(Mode::Auto, Mode::Approve)]);
}
