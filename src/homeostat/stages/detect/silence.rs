//! What is said of rows that do not come. Silence is judged in event time against the source's progress.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray},
    compute::cast,
    datatypes::DataType,
};
use detector::{Row, Score};
use engine::{assemble::Sighting, expression, spec::DetectorInput};
use protocol::{Outputs, StageError, message::Anomaly};
use serde_json::Value;

use super::{
    Detect,
    part::{Alarm, Meta, Part},
    watch::Watch,
};

impl Detect {
    /// Moves the last event time of the entities in a pane, and ends their silence.
    pub(super) fn sighting(
        &mut self,
        part: &mut Part,
        offset: i64,
        sighting: &Sighting,
        live: bool,
        out: &mut Outputs,
    ) {
        let versions = Arc::clone(&part.live);
        for watch in &versions.watches {
            let input = DetectorInput::PaneSet(sighting.pane_set);
            let place = (watch.version, watch.pipeline);
            if place != (sighting.version, sighting.pipeline) || watch.spec.input != input {
                continue;
            }
            for (row, seen) in sighting.last_seen_ms.iter().enumerate() {
                let Some(seen) = *seen else { continue };
                let target = watch.keys(&sighting.keys, row);
                let entity = watch.entity(part, &target);
                if offset <= entity.includes {
                    continue;
                }
                entity.meta.source = sighting.source;
                let last = entity.meta.seen.entry(sighting.source_partition).or_insert(seen);
                *last = (*last).max(seen);
                let before = entity.meta.last_ms;
                if seen <= before {
                    continue;
                }
                entity.meta.last_ms = seen;
                entity.dirty(offset);
                if !entity.meta.alarm.alarming {
                    continue;
                }
                entity.meta.alarm = Alarm::default();
                let anomaly = watch.silence(&entity.meta, before, seen, 0.0, true, Vec::new());
                if live {
                    watch.write_score(&self.topics, &anomaly, out);
                    if let Some(tap) = &mut self.tap {
                        tap.silent(&anomaly);
                    }
                    self.counts.anomalies += 1;
                    self.urgent = true;
                    out.push(watch.event(&self.topics, &entity.meta.target, &anomaly));
                }
            }
        }
    }

    /// Judges every watched entity against the fleet's progress.
    pub(super) fn silences(
        &mut self,
        part: &mut Part,
        offset: i64,
        live: bool,
        out: &mut Outputs,
    ) -> Result<(), StageError> {
        let versions = Arc::clone(&part.live);
        let newest = versions
            .watches
            .iter()
            .filter(|watch| watch.version == versions.newest());
        for watch in newest.filter(|watch| watch.panes.is_some()) {
            let entities = &mut part.entities[watch.slot];
            for number in entities.in_order() {
                let entity = &mut entities[number];
                let Some(table) = part.assembler.table().sources.get(&entity.meta.source) else {
                    continue;
                };
                let Some(now) = table.closed_ms else { continue };
                if table.all_idle() || offset <= entity.includes {
                    continue;
                }
                let last = entity.meta.last_ms;
                let row = Row {
                    time_ms: now,
                    features: &[last as f64],
                    learn: true,
                };
                let mut score = Score::default();
                entity.state.score(row, &mut score);
                let idle = |partition: &i32| table.partitions.get(partition).is_some_and(|partition| partition.idle);
                let healthy = !entity.meta.seen.keys().all(idle);
                let threshold = if score.score > 0.0 {
                    (now - last) as f64 / score.score
                } else {
                    continue;
                };
                for said in silent_windows(entity.meta.alarm.silent_windows, score.score) {
                    entity.dirty(offset);
                    entity.meta.alarm.silent_windows = said;
                    entity.meta.alarm.alarming = true;
                    if live {
                        let end = last + (threshold * said as f64) as i64;
                        let meets = watch
                            .met_in_silence(&entity.meta, said as f64)
                            .map_err(|error| StageError::Fatal(format!("{}: {error}", watch.id)))?;
                        let anomaly = watch.silence(&entity.meta, last, end, said as f64, healthy, meets);
                        watch.write_score(&self.topics, &anomaly, out);
                        if let Some(tap) = &mut self.tap {
                            tap.silent(&anomaly);
                        }
                        self.counts.anomalies += 1;
                        self.urgent = true;
                        out.push(watch.event(&self.topics, &entity.meta.target, &anomaly));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The windows of silence to speak of now: the first eight one by one, then every doubling, so that a dead entity does not
/// speak for ever.
pub(super) fn silent_windows(said: u64, score: f64) -> impl Iterator<Item = u64> {
    let reached = score.min(1e9) as u64;
    let worth = |window: &u64| *window <= 8 || window.is_power_of_two();
    let upto = if reached > 8 {
        reached.next_power_of_two() / if reached.is_power_of_two() { 1 } else { 2 }
    } else {
        reached
    };
    let first = said + 1;
    let small = first..=upto.min(8);
    let doublings = (4..40)
        .map(|power| 1u64 << power)
        .filter(move |window| *window >= first && *window <= upto);
    small.chain(doublings).filter(worth)
}

impl Watch {
    /// Policies of which a silent entity meets WHEN: of its columns it has the score and its KEY values.
    pub(super) fn met_in_silence(&self, meta: &Meta, score: f64) -> Result<Vec<String>, arrow::error::ArrowError> {
        let mut met = Vec::new();
        for policy in &self.policies {
            let Some(when) = &policy.when else {
                met.push(policy.name.clone());
                continue;
            };
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(Float64Array::from(vec![score])),
                Arc::new(BooleanArray::from(vec![score >= 1.0])),
            ];
            for field in policy.input.fields().iter().skip(columns.len()) {
                columns.push(key_value(meta.target.get(field.name()), field.data_type())?);
            }
            let input = RecordBatch::try_new(Arc::clone(&policy.input), columns)?;
            let value = expression::met(when, &input)
                .map_err(|error| arrow::error::ArrowError::ExternalError(Box::new(error)))?;
            // NULL is not met.
            if value.iter().flatten().any(|met| met) {
                met.push(policy.name.clone());
            }
        }
        Ok(met)
    }

    /// An entity was silent from `start` to `end`; score 0 ends the silence.
    pub(super) fn silence(
        &self,
        meta: &Meta,
        start: i64,
        end: i64,
        score: f64,
        healthy: bool,
        meets: Vec<String>,
    ) -> Anomaly {
        let clears = if score >= 1.0 {
            Vec::new()
        } else {
            self.policies.iter().map(|policy| policy.name.clone()).collect()
        };
        Anomaly {
            target: meta.target.clone(),
            pipeline: self.pipeline_name.clone(),
            detector: self.spec.name.clone(),
            window_start: start,
            window_end: end,
            score,
            is_anomaly: score >= 1.0,
            features: [("silent_s".to_owned(), Some((end - start) as f64 / 1_000.0))].into(),
            contributions: [("silent_s".to_owned(), score)].into(),
            columns: BTreeMap::new(),
            meets,
            clears,
            telemetry_healthy: healthy,
        }
    }
}

/// One KEY value of an entity as a column of one row.
pub(super) fn key_value(value: Option<&Value>, data_type: &DataType) -> Result<ArrayRef, arrow::error::ArrowError> {
    let text = match value {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    };
    cast(&StringArray::from(vec![text]), data_type)
}
