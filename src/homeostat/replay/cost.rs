//! What a row costs: the records of a file, decoded, filtered and folded again and again by the stage that runs live.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use engine::spec::Pipeline;
use protocol::{Outputs, Stage, TimestampKind};

use super::{Files, Input, Lines, RECORDS_PER_CHUNK, Shared, Walk, from_files, split};

const RECORDS_PER_BATCH: usize = 4_096;
/// Long enough to tell a figure, short enough to wait for.
const MEASURED: Duration = Duration::from_millis(200);

/// The cost of the rows of one source, in all pane sets over it, on one core.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    pub source: String,
    /// Rows that the file has.
    pub rows: u64,
    pub ns_per_row: f64,
}

/// Measures every source that has a file; `inputs` as of [`super::replay`].
pub fn cost_per_row(pipeline: &Pipeline, inputs: Vec<Option<Input>>) -> anyhow::Result<Vec<Cost>> {
    let (inputs, tables) = split(pipeline, inputs)?;
    let files = from_files(pipeline);
    let lines = Shared(Arc::new(Mutex::new(Lines::new(&files))));
    let mut walk = Walk::new(files, &Files(&inputs, &tables), 1, lines)?;
    walk.tables(&tables)?;
    let mut costs = Vec::new();
    for (source, input) in inputs.iter().enumerate() {
        if let Some(input) = input.as_ref().filter(|input| input.records() > 0) {
            costs.extend(walk.cost(source, input)?.map(|(rows, ns_per_row)| Cost {
                source: pipeline.sources[source].name.clone(),
                rows,
                ns_per_row,
            }));
        }
    }
    Ok(costs)
}

impl Walk {
    /// Rows of one pass, and nanoseconds per row; the first pass is there to warm up.
    fn cost(&mut self, source: usize, input: &Input) -> anyhow::Result<Option<(u64, f64)>> {
        let topic = self.pipeline[0].sources[source].topic.clone();
        // As many at a time as a consumer hands out when it has fallen behind, however few the file has.
        let all = input.records() as u32;
        let batch = input.records().clamp(RECORDS_PER_BATCH, RECORDS_PER_CHUNK);
        let (mut spent, mut passes, mut one_pass) = (Duration::ZERO, 0u32, 0);
        while spent < MEASURED {
            let before = self.rows();
            self.records.clear();
            let handle = self.records.partition(&topic, 0);
            for at in (0..all).cycle().take(batch) {
                let offset = &mut self.offsets[source][0];
                let (time, key) = ((0, TimestampKind::LogAppend), at.to_le_bytes());
                self.records.push(handle, *offset, time, Some(&key), None, []);
                *offset += 1;
            }
            let began = Instant::now();
            self.aggregate.step(&self.records, &mut Outputs::default())?;
            let took = began.elapsed();
            one_pass = self.rows() - before;
            if one_pass == 0 {
                return Ok(None);
            }
            if passes > 0 {
                spent += took;
            }
            passes += 1;
        }
        let rows = one_pass * u64::from(passes - 1);
        Ok(Some((
            one_pass * u64::from(all) / batch as u64,
            spent.as_nanos() as f64 / rows as f64,
        )))
    }

    fn rows(&self) -> u64 {
        let mut rows = 0.0;
        self.aggregate.observe(&mut |name, _, value| {
            if name == "rows_total" {
                rows = value;
            }
        });
        rows as u64
    }
}
