//! Names of the topics, all under one prefix: a fleet is a topic prefix.

/// The topics of one fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
    tenant: String,
}

/// What a topic is for, which decides how it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Deleted after so many days.
    Delete {
        days: u32,
    },
    Compact,
}

/// How a topic is created when it is absent. All of them use LogAppendTime: decide's time is the broker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: Partitions,
    pub cleanup: Cleanup,
}

/// How many partitions a topic gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// One: the fleet's single writer owns it.
    One,
    /// As many as `panes`, fixed for a topic generation.
    Panes,
    /// As configured for commands.
    Actions,
}

macro_rules! topics {
    ($($name:ident: $text:literal, $partitions:ident, $cleanup:expr;)*) => {
        impl Topics {
            $(#[doc = concat!("`", $text, "` under the fleet's prefix.")]
            pub fn $name(&self) -> String { format!("{}{}", self.prefix, $text) })*

            /// Every topic of the fleet and how to create it.
            pub fn all(&self) -> Vec<TopicSpec> {
                vec![$(TopicSpec { name: self.$name(), partitions: Partitions::$partitions, cleanup: $cleanup }),*]
            }
        }
    };
}

topics! {
    panes: "panes", Panes, Cleanup::Delete { days: 1 };
    state: "state", Panes, Cleanup::Compact;
    anomalies: "anomalies", One, Cleanup::Delete { days: 7 };
    actions: "actions", Actions, Cleanup::Delete { days: 7 };
    outcomes: "outcomes", One, Cleanup::Delete { days: 30 };
    approvals: "approvals", One, Cleanup::Delete { days: 30 };
    decisions: "decisions", One, Cleanup::Delete { days: 365 };
    incidents: "incidents", One, Cleanup::Delete { days: 365 };
    control: "control", One, Cleanup::Compact;
    dead_letters: "dead_letters", One, Cleanup::Delete { days: 7 };
    late: "late", One, Cleanup::Delete { days: 7 };
}

impl Topics {
    /// `prefix` includes its separator: `homeostat.`. The tenant is the prefix without it.
    pub fn new(prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        let tenant = prefix.trim_end_matches(['.', '-', '_']).to_owned();
        Self { prefix, tenant }
    }

    /// A tenant of another name: ids and keys are made from it, so that they outlive a renamed prefix.
    pub fn with_tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = tenant.into();
        self
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn tenant(&self) -> &str {
        &self.tenant
    }
}
