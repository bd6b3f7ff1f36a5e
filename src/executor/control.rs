//! What people have said on the `control` topic that keeps this executor from acting.
//!
//! A fold over the topic's records, nothing more. In doubt it refuses: a record of a scope that matters and cannot be
//! read counts as the strictest thing it could have said.

use std::collections::BTreeMap;

use protocol::message::{Control, Mode};

use crate::{allow, command::Command};

/// The control records in force, by scope.
#[derive(Clone, Debug, Default)]
pub struct ControlView {
    records: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    Control(Control),
    Unreadable,
}

impl ControlView {
    /// A record of the topic; `None` withdraws the scope.
    pub fn apply(&mut self, key: &[u8], value: Option<&[u8]>) {
        let scope = String::from_utf8_lossy(key).into_owned();
        let Some(value) = value else {
            self.records.remove(&scope);
            return;
        };
        match serde_json::from_slice::<Control>(value) {
            Ok(control) => {
                self.records.insert(scope, Entry::Control(control));
            }
            Err(error) if concerns_executors(&scope) => {
                tracing::error!(%scope, %error, "control record cannot be read; refusing what it may have forbidden");
                self.records.insert(scope, Entry::Unreadable);
            }
            Err(_) => {}
        }
    }

    /// Why this command may not start now, if so.
    pub fn refusal(&self, command: &Command, now_ms: i64) -> Option<String> {
        let service = command.service();
        for (scope, entry) in &self.records {
            let Entry::Control(control) = entry else {
                return Some(format!("the control record {scope:?} cannot be read; write it anew"));
            };
            match control {
                Control::KillSwitch {
                    engaged: true,
                    by,
                    reason,
                } => {
                    return Some(format!("the kill switch is engaged by {by}{}", because(reason)));
                }
                Control::Protected {
                    service: name,
                    by,
                    reason,
                } if allow::matches(name, service) => {
                    return Some(format!("{name} is protected by {by}{}", because(reason)));
                }
                Control::Maintenance {
                    service: name,
                    from,
                    to,
                    by,
                    reason,
                } if allow::matches(name, service) && (*from..*to).contains(&now_ms) => {
                    return Some(format!("maintenance of {name} by {by}{}", because(reason)));
                }
                _ => {}
            }
        }
        match self.mode(service, command.kind(), now_ms)? {
            mode @ (Mode::Off | Mode::Shadow) => Some(format!(
                "the mode of {:?} on {service} is {} by control",
                command.kind(),
                if mode == Mode::Off { "off" } else { "shadow" }
            )),
            Mode::Approve | Mode::Auto => None,
        }
    }

    /// Who took this very command back, and why, if somebody did.
    pub fn cancelled(&self, command: &Command) -> Option<String> {
        match self.records.get(&format!("cancel/{}", command.id())) {
            Some(Entry::Control(Control::Cancel { by, reason, .. })) => Some(format!("by {by}{}", because(reason))),
            _ => None,
        }
    }

    /// The mode that the most specific record sets. `approve` and `auto` differ for the decider only: it alone knows
    /// whom it has asked.
    fn mode(&self, service: &str, action: &str, now_ms: i64) -> Option<Mode> {
        let scopes = [
            format!("mode/{service}/{action}"),
            format!("mode/{service}/*"),
            format!("mode/*/{action}"),
            "mode/*/*".to_owned(),
        ];
        scopes.iter().find_map(|scope| match self.records.get(scope) {
            Some(Entry::Control(Control::Mode { mode, until, .. })) if until.is_none_or(|until| now_ms < until) => {
                Some(*mode)
            }
            _ => None,
        })
    }
}

fn concerns_executors(scope: &str) -> bool {
    scope == "kill_switch"
        || ["mode/", "protected/", "maintenance/"]
            .iter()
            .any(|prefix| scope.starts_with(prefix))
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

#[cfg(test)]
mod tests;
