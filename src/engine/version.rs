//! The pipelines of a fleet at one version, and how a stage that hears of another one gets its plan.

use std::sync::Arc;

use protocol::message::PipelineText;

use crate::spec::Pipeline;

/// All pipelines of a fleet at one version.
#[derive(Clone, Debug)]
pub struct Version {
    /// From 1; 0 where pipelines are not versioned: in replays, previews and tests.
    pub number: u64,
    /// What was compiled; none where pipelines are not versioned.
    pub texts: Arc<[PipelineText]>,
    pub pipelines: Arc<[Pipeline]>,
}

impl Version {
    /// Pipelines that nothing replaces.
    pub fn fixed(pipelines: Arc<[Pipeline]>) -> Self {
        Self {
            number: 0,
            texts: Arc::default(),
            pipelines,
        }
    }
}

/// Turns what was applied into plans. Pure: the same texts give the same plans on every machine.
pub trait Compile: Send + Sync {
    /// One pipeline for each text, or what is wrong, for people.
    fn compile(&self, texts: &[PipelineText]) -> Result<Arc<[Pipeline]>, String>;
}
