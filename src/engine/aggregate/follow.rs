//! Versions of the pipelines that this instance reads for: the one in force, and older ones while windows of theirs are open.
//!
//! `control` says both. When an instance hears of a version is chance, but what follows from it is not: the new pane sets of a
//! partition begin ahead of every row that was read, as its commit metadata records and its progress says.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{
    Output, Outputs, Record, log,
    message::{self, Control},
};

use super::{Decoders, Planned, chain};
use crate::{
    error::Error,
    spec::Pipeline,
    version::{Compile, Version},
};

#[derive(Default)]
pub(super) struct Follow {
    /// Oldest first; empty where pipelines are not versioned.
    running: Vec<Version>,
    /// Everything heard of that can be run.
    heard: BTreeMap<u64, Version>,
    /// Older ones are over.
    settled: u64,
    /// The running versions have yet to be told to detect.
    announce_due: bool,
    tools: Option<(Arc<dyn Decoders>, Arc<dyn Compile>)>,
}

impl Follow {
    pub(super) fn new(running: Vec<Version>, decoders: Arc<dyn Decoders>, compile: Arc<dyn Compile>) -> Self {
        Self {
            heard: running
                .iter()
                .map(|version| (version.number, version.clone()))
                .collect(),
            settled: running.first().map_or(0, |version| version.number),
            running,
            announce_due: true,
            tools: Some((decoders, compile)),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.tools.is_some()
    }

    /// The newest version that runs.
    pub(super) fn version(&self) -> u64 {
        self.running.last().map_or(0, |version| version.number)
    }

    /// Whether somebody has read for a version that this instance has not heard of.
    pub(super) fn is_behind(&self, version: u64) -> bool {
        self.is_on() && version > self.version()
    }

    pub(super) fn hear(&mut self, record: &Record<'_>) {
        let Some((_, compile)) = &self.tools else { return };
        match record.value.map(|value| message::read::<Control>("control", value)) {
            Some(Ok(Control::Pipelines { version, pipelines, .. })) if version > self.newest() => {
                match compile.compile(&pipelines) {
                    Ok(compiled) => {
                        let texts = pipelines.into();
                        let version = Version {
                            number: version,
                            texts,
                            pipelines: compiled,
                        };
                        self.heard.insert(version.number, version);
                    }
                    Err(reason) => tracing::error!(
                        version,
                        reason,
                        "this version of the pipelines cannot be run; the one before goes on"
                    ),
                }
            }
            Some(Ok(Control::PipelinesSettled { version })) => self.settled = self.settled.max(version),
            // The rest is decide's to read and to complain of.
            _ => {}
        }
    }

    fn newest(&self) -> u64 {
        self.heard.last_key_value().map_or(0, |(number, _)| *number)
    }

    /// What should run: the newest, and those before it whose windows are still open.
    fn wanted(&self) -> impl Iterator<Item = &Version> {
        let from = self.settled.min(self.newest());
        self.heard.range(from..).map(|(_, version)| version)
    }

    pub(super) fn is_changing(&self) -> bool {
        let running = self.running.iter().map(|version| version.number);
        self.is_on() && !self.wanted().map(|version| version.number).eq(running)
    }

    /// Takes over what should run. Versions that cannot be run side by side leave things as they are.
    pub(super) fn change(
        &mut self,
        plan: impl Fn(&[Version], &dyn Decoders) -> Result<Planned, Error>,
    ) -> (Option<Planned>, Arc<[Pipeline]>) {
        let wanted: Vec<Version> = self.wanted().cloned().collect();
        let (Some((decoders, _)), Some(newest)) = (&self.tools, wanted.last()) else {
            return (None, Arc::default());
        };
        let pipelines = Arc::clone(&newest.pipelines);
        match plan(&wanted, &**decoders) {
            Ok(planned) => {
                tracing::info!(
                    version = newest.number,
                    beside = wanted.len() - 1,
                    "pipelines taken over"
                );
                self.heard.retain(|number, _| *number >= self.settled);
                self.running = wanted;
                (Some(planned), pipelines)
            }
            Err(error) => {
                let (version, reason) = (newest.number, chain(&error));
                tracing::error!(
                    version,
                    reason,
                    "this version of the pipelines cannot be run beside the one before, which goes on"
                );
                self.heard.remove(&version);
                (None, pipelines)
            }
        }
    }

    /// What was told may have been told by a transaction that was aborted.
    pub(super) fn announce_anew(&mut self) {
        self.announce_due = true;
    }

    /// Tells detect the running versions.
    pub(super) fn announce(&mut self, panes: &Arc<str>, partitions: i32, out: &mut Outputs) -> Result<(), Error> {
        if !std::mem::take(&mut self.announce_due) {
            return Ok(());
        }
        for version in self.running.iter().filter(|version| version.number > 0) {
            let told = log::Version {
                version: version.number,
                pipelines: version.texts.to_vec(),
            };
            let value = serde_json::to_vec(&told).map_err(|error| Error::Unreadable {
                what: "version",
                reason: error.to_string(),
            })?;
            for partition in 0..partitions {
                out.push(Output {
                    topic: Arc::clone(panes),
                    partition: Some(partition),
                    key: None,
                    value: Some(value.clone()),
                    headers: vec![(log::KIND.to_owned(), log::KIND_VERSION.as_bytes().to_vec())],
                });
            }
        }
        Ok(())
    }
}
