//! Data of the events on topics; `schemas/` describes the same in JSON Schema for people and other languages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{Error, Target};

/// Reads event data. The name of the type stands in the error.
pub fn read<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what, source })
}

/// A window that a detector alarms about, or with `is_anomaly: false` the window at which an alarm ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Anomaly {
    /// Every KEY column by name.
    pub target: BTreeMap<String, Value>,
    pub pipeline: String,
    pub detector: String,
    #[serde(with = "crate::time")]
    pub window_start: i64,
    #[serde(with = "crate::time")]
    pub window_end: i64,
    /// 1.0 is the alarm level.
    pub score: f64,
    pub is_anomaly: bool,
    /// Every feature by name; a feature that was NULL is `null`.
    pub features: BTreeMap<String, Option<f64>>,
    /// By feature; they sum to the score.
    pub contributions: BTreeMap<String, f64>,
    /// What a policy may refer to beside the features: the other columns of the view's row.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, Value>,
    /// Policies of which this window met WHEN.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub meets: Vec<String>,
    /// Policies of which CLEAR WHEN is now met for long enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clears: Vec<String>,
    /// Whether the telemetry that this rests on is alive: false when all source partitions that last spoke of the target are idle.
    #[serde(default = "yes")]
    pub telemetry_healthy: bool,
}

fn yes() -> bool {
    true
}

/// A feature of an entity has settled on a new level, and its detector has accepted it: `dev.homeostat.level_shift.v1`. Said once per shift.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelShift {
    /// Every KEY column by name.
    pub target: BTreeMap<String, Value>,
    pub pipeline: String,
    pub detector: String,
    /// The window at which it was accepted.
    #[serde(with = "crate::time")]
    pub window_start: i64,
    #[serde(with = "crate::time")]
    pub window_end: i64,
    pub feature: String,
    /// Means of the feature before the departure and after.
    pub old_level: f64,
    pub new_level: f64,
    /// When the departure from the old level began: the end of its first window.
    #[serde(with = "crate::time")]
    pub since: i64,
}

/// Time for decide, forwarded by detect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimeProgress {
    /// Minimum watermark of the `panes` partition; `None` before the first.
    pub watermark_ms: Option<i64>,
    #[serde(with = "crate::time")]
    pub clock: i64,
    /// `panes` partition that speaks.
    pub partition: i32,
    /// Entities seen lately on this partition, by pipeline and detector: the base of the fleet-wide share.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub population: BTreeMap<String, u64>,
    /// The oldest version of the pipelines of which a window is open on this partition; 0 where they have none.
    #[serde(default, skip_serializing_if = "crate::message::is_zero")]
    pub version: u64,
}

pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What to do. Verbs are the executor's; parameters never come from telemetry's strings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionBody {
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    pub params: serde_json::Map<String, Value>,
}

/// Where an action stands on its ladder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder {
    pub step: u32,
    pub of: u32,
    pub policy: String,
}

/// When an action may run, and when its effect is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    #[serde(with = "crate::time")]
    pub decided_at: i64,
    #[serde(with = "crate::time")]
    pub start_deadline: i64,
    pub exec_timeout_ms: i64,
    pub verify_after_ms: i64,
    pub verify_for_ms: i64,
}

/// A command: `dev.homeostat.action.requested.v1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    pub action_id: Uuid,
    pub incident_id: Uuid,
    pub decision_id: Uuid,
    pub attempt: u32,
    pub ladder: Ladder,
    pub action: ActionBody,
    pub target: ActionTarget,
    pub timing: Timing,
    /// `live` or `shadow`; only `live` may have an effect.
    pub mode: String,
    pub approval: Approval,
    pub explain: Explain,
}

impl Action {
    /// What a person agrees to: everything of the command but its timing, its approval and its explanation, which are
    /// settled when it is published. Lower-case hexadecimal SHA-256.
    pub fn proposal_sha256(&self) -> String {
        use sha2::Digest;
        let proposal = (
            self.action_id,
            self.incident_id,
            self.attempt,
            &self.ladder,
            &self.action,
            &self.target.key,
        );
        let bytes = serde_json::to_vec(&proposal).expect("message types have string keys and finite numbers");
        sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// A command withdrawn: `dev.homeostat.action.cancelled.v1`. Who has not started it must not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionCancelled {
    pub action_id: Uuid,
    pub incident_id: Uuid,
    pub target_key: String,
    #[serde(with = "crate::time")]
    pub at: i64,
    pub reason: String,
}

/// The target with its key and what names it in OpenTelemetry's attributes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionTarget {
    pub key: String,
    #[serde(flatten)]
    pub target: Target,
}

/// Whether a person had to agree, and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub required: bool,
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<Uuid>,
}

/// Why this action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explain {
    pub policy: String,
    pub detector: String,
    pub pipeline: String,
    pub score: f64,
    pub evidence: Vec<Uuid>,
    pub gates: Vec<Gate>,
}

/// One gate with what it compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    pub gate: String,
    pub passed: bool,
    /// The values it compared, for people.
    pub values: BTreeMap<String, Value>,
}

/// An executor's report: `dev.homeostat.outcome.<status>.v1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub action_id: Uuid,
    pub incident_id: Uuid,
    pub attempt: u32,
    pub executor: Executor,
    pub status: OutcomeStatus,
    /// HTTP-like code: 102, 200, 401, 403, 404, 409, 410, 412, 422, 423, 429, 500, 504.
    pub code: u16,
    pub retryable: bool,
    #[serde(with = "crate::time")]
    pub at: i64,
    /// What changed, for people: before, after, marker.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub effect: serde_json::Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    pub payload_sha256: String,
}

/// Who reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executor {
    pub id: String,
    pub version: String,
}

/// Where an action stands with its executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    Accepted,
    Started,
    Succeeded,
    Failed,
    Rejected,
    Expired,
    /// Withdrawn, and not done.
    Cancelled,
    Unknown,
}

impl OutcomeStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Started => "started",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }

    /// Nothing further follows.
    pub fn terminal(self) -> bool {
        !matches!(self, Self::Accepted | Self::Started)
    }
}

/// Did it heal? Judged from the signal, never from the executor's word. On `outcomes`, as its own type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictRecord {
    pub action_id: Uuid,
    pub incident_id: Uuid,
    pub target_key: String,
    pub verdict: Verdict,
    #[serde(with = "crate::time")]
    pub from: i64,
    #[serde(with = "crate::time")]
    pub to: i64,
    pub score_before: f64,
    pub score_after: Option<f64>,
    pub reason: String,
}

/// The verdict on an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Recovered,
    Improved,
    Unchanged,
    Worse,
    Inconclusive,
    Confounded,
    Superseded,
}

/// How far a policy may go. The order is the ladder of trust: the effective mode is the lower of the policy's and the control's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Off,
    Shadow,
    Approve,
    Auto,
}

/// Every decision, also those not to act.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub decision_id: Uuid,
    pub incident_id: Uuid,
    pub target_key: String,
    pub policy: String,
    pub pipeline: String,
    pub detector: String,
    #[serde(with = "crate::time")]
    pub decided_at: i64,
    pub verdict: DecisionKind,
    /// The gate that refused, if one did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused_by: Option<String>,
    pub gates: Vec<Gate>,
    pub mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub action_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub action: Option<ActionBody>,
    pub propensity: f64,
    pub score: f64,
    pub evidence: Vec<Uuid>,
    /// How the action was chosen, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub choice: Option<Choice>,
}

/// A learned choice, with everything needed to check and to evaluate it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Version of the model; none was in force when absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// The model could not tell, and nothing else was known.
    pub abstained: bool,
    /// The action that fits best by the model alone: what is learned of an action is learned for such incidents.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fits: Option<String>,
    /// The conditions that the explaining tree found to hold.
    pub path: Vec<String>,
    /// Every action that was considered.
    pub options: Vec<ChoiceOption>,
    /// What it was chosen on, by feature.
    pub context: BTreeMap<String, Value>,
}

/// One action that was considered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceOption {
    pub action: String,
    /// What the model says of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probability: Option<f64>,
    /// Mean of what is believed of its success.
    pub expected: f64,
    /// Probability with which it would have been chosen.
    pub propensity: f64,
    /// Why it could not be chosen: a gate, or `unsafe` for an impact that nothing here calls for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused_by: Option<String>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// A command was published.
    Act,
    /// A command would have been published, had the mode allowed.
    Shadow,
    /// A person is asked.
    AskApproval,
    /// A gate refused.
    Refuse,
}

/// An episode at one target, on `incidents`, at every change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub incident_id: Uuid,
    pub target_key: String,
    pub policy: String,
    pub pipeline: String,
    pub detector: String,
    pub state: IncidentState,
    #[serde(with = "crate::time")]
    pub opened_at: i64,
    #[serde(with = "crate::time")]
    pub changed_at: i64,
    pub actions: Vec<Uuid>,
    pub reason: String,
}

/// Where an incident stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// Fires, nothing done yet.
    Open,
    /// A command is on its way or being carried out.
    Acting,
    /// The effect is being watched.
    Verifying,
    /// A person is asked.
    AwaitingApproval,
    /// Refused for now, with the reason.
    Suppressed,
    /// A person has to look.
    Escalated,
    Closed,
}

/// A person's word on `approvals`, or the request for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApprovalRecord {
    pub approval_id: Uuid,
    pub action_id: Uuid,
    pub incident_id: Uuid,
    pub target_key: String,
    /// [`Action::proposal_sha256`]: a grant is for exactly this.
    pub payload_sha256: String,
    #[serde(with = "crate::time")]
    pub requested_at: i64,
    #[serde(with = "crate::time")]
    pub expires_at: i64,
    /// Who answered; absent in the request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What is asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub action: Option<ActionBody>,
}

/// A record on `control`; the record's key is [`Control::scope`]. A tombstone withdraws it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "control", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    /// While engaged nothing starts, anywhere in the fleet.
    KillSwitch {
        engaged: bool,
        by: String,
        #[serde(default)]
        reason: String,
    },
    /// The mode of a service and action; `*` matches all. The most specific record counts.
    Mode {
        service: String,
        action: String,
        mode: Mode,
        /// From then on the record counts as withdrawn.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::optional")]
        until: Option<i64>,
        by: String,
        #[serde(default)]
        reason: String,
    },
    /// Never acted on.
    Protected {
        service: String,
        by: String,
        #[serde(default)]
        reason: String,
    },
    /// Between these times nothing starts on the service (`*`: on any).
    Maintenance {
        service: String,
        #[serde(with = "crate::time")]
        from: i64,
        #[serde(with = "crate::time")]
        to: i64,
        by: String,
        #[serde(default)]
        reason: String,
    },
    /// Takes an approver's right to answer away, or gives it back. Who is an approver at all stands in the configuration: this record
    /// is not signed.
    Approver {
        name: String,
        revoked: bool,
        by: String,
        #[serde(default)]
        reason: String,
    },
    /// A person has looked: the breakers of the service close and its escalated incidents are considered again.
    /// Applied when it is read; the same record read twice resets once.
    Reset {
        service: String,
        by: String,
        #[serde(with = "crate::time")]
        at: i64,
        #[serde(default)]
        reason: String,
    },
    /// A person takes back a command that is on its way. Applied when it is read; what has been done stays done.
    Cancel {
        action: Uuid,
        by: String,
        #[serde(with = "crate::time")]
        at: i64,
        #[serde(default)]
        reason: String,
    },
    /// Thresholds of the decide stage that differ for a service and action (`*` stands for any text): keys as in the
    /// configuration's `[decide]`.
    Thresholds {
        service: String,
        action: String,
        set: serde_json::Map<String, Value>,
        by: String,
        #[serde(default)]
        reason: String,
    },
    /// The model that chooses for a policy (`pipeline.policy`, or `*` for all that have none of their own).
    Model {
        policy: String,
        /// As `train` writes it.
        model: Value,
        by: String,
        #[serde(default)]
        reason: String,
    },
    /// Layout of the fleet's internal topics, written once.
    Generation { panes_partitions: i32 },
    /// All pipelines of the fleet at one version; the greatest version is the one in force.
    Pipelines {
        /// From 1, without gaps.
        version: u64,
        /// By name, ascending.
        pipelines: Vec<PipelineText>,
        /// Who keeps them.
        origin: PipelinesOrigin,
        /// The earlier version that this one brings back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restores: Option<u64>,
        by: String,
        #[serde(with = "crate::time")]
        at: i64,
        #[serde(default)]
        reason: String,
    },
    /// No window of an older version is open any more, on any partition: nobody need keep its panes.
    PipelinesSettled { version: u64 },
}

/// A pipeline as it was applied: nothing outside it is needed to compile it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineText {
    pub name: String,
    /// SQL, with every INCLUDE replaced by its text.
    pub text: String,
    /// Contents of the files that its tables name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Pane sets that were begun anew, by fingerprint, 16 hexadecimal digits, with the version that did: a view of other windows needs panes
    /// that are gone, or others than there were.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub begun: BTreeMap<String, u64>,
}

impl PipelineText {
    /// Whether both say the same, whichever version they are of.
    pub fn says(&self, other: &Self) -> bool {
        (&self.name, &self.text, &self.files) == (&other.name, &other.text, &other.files)
    }
}

/// Who keeps the pipelines of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipelinesOrigin {
    /// The folder that processes are started with.
    Folder,
    /// A person, by command: what lies in folders changes nothing.
    Operator,
}

impl Control {
    /// The key under which the record stands: a later record of the same scope replaces it.
    pub fn scope(&self) -> String {
        match self {
            Self::KillSwitch { .. } => "kill_switch".into(),
            Self::Mode { service, action, .. } => format!("mode/{service}/{action}"),
            Self::Protected { service, .. } => format!("protected/{service}"),
            Self::Maintenance { service, .. } => format!("maintenance/{service}"),
            Self::Approver { name, .. } => format!("approver/{name}"),
            Self::Reset { service, .. } => format!("reset/{service}"),
            Self::Cancel { action, .. } => format!("cancel/{action}"),
            Self::Thresholds { service, action, .. } => format!("thresholds/{service}/{action}"),
            Self::Model { policy, .. } => format!("model/{policy}"),
            Self::Generation { .. } => "generation".into(),
            Self::Pipelines { version, .. } => format!("pipelines/{version}"),
            Self::PipelinesSettled { .. } => "pipelines_settled".into(),
        }
    }
}

/// What one decide transaction consumed, in order: replay follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// Topic, first and last offset, in the order of consumption.
    pub consumed: Vec<(String, i64, i64)>,
    /// Control records applied, by scope.
    pub control: BTreeMap<String, Option<Control>>,
}
