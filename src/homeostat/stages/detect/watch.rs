//! One declared detector: its entities' scores, the policies that rest on them, and what is said of both.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type},
};
use detector::{Detector, Row, Score, State, slab};
use engine::{
    assemble::ClosedWindow,
    expression, json,
    spec::{DetectorInput, DetectorSpec, Pipeline, PolicySpec, SinkInput, SinkSpec},
};
use protocol::{
    CloudEvent, Target, Topics, cloudevent, id,
    message::{Anomaly, LevelShift},
};
use serde_json::Value;

use super::{
    entities::{Entities, known},
    part::{Alarm, Entity, Meta, Part, seed},
};

/// A declared detector with its algorithm and the policies that rest on it.
pub(super) struct Watch {
    /// Of the pipelines that it is declared in.
    pub(super) version: u64,
    /// Where its entities are.
    pub(super) slot: usize,
    pub(super) pipeline: usize,
    pub(super) pipeline_name: String,
    pub(super) spec: DetectorSpec,
    pub(super) policies: Vec<PolicySpec>,
    pub(super) algorithm: Arc<dyn Detector>,
    /// `<pipeline>.<detector>`: names it in state keys and metrics.
    pub(super) id: String,
    /// The view that it is on, as `pipeline.view`.
    pub(super) view: Option<String>,
    /// Of silence: fingerprints of the pane set and of its source.
    pub(super) panes: Option<u64>,
    pub(super) source: Option<u64>,
    /// What takes every score.
    pub(super) sinks: Vec<SinkSpec>,
    /// Its scores are columns of a view, and nothing else.
    pub(super) is_inner: bool,
}

impl Watch {
    /// A detector of the pipeline.
    pub(super) fn declared(
        version: u64,
        index: usize,
        pipeline: &Pipeline,
        at: usize,
    ) -> Result<Self, detector::Error> {
        let policies = pipeline.policies.iter().filter(|policy| policy.detector == at);
        let sinks = pipeline
            .sinks
            .iter()
            .filter(|sink| sink.input == SinkInput::Detector(at));
        Ok(Self {
            policies: policies.cloned().collect(),
            sinks: sinks.cloned().collect(),
            is_inner: false,
            ..Self::inner(version, index, pipeline, &pipeline.detectors[at])?
        })
    }

    /// A detector of ML_DETECT_ANOMALIES.
    pub(super) fn inner(
        version: u64,
        index: usize,
        pipeline: &Pipeline,
        spec: &DetectorSpec,
    ) -> Result<Self, detector::Error> {
        let features: Vec<String> = spec.features.iter().map(|(name, _)| name.clone()).collect();
        let (view, set) = match spec.input {
            DetectorInput::View(view) => (Some(&pipeline.views[view]), None),
            DetectorInput::PaneSet(set) => (None, Some(&pipeline.pane_sets[set])),
        };
        Ok(Self {
            version,
            slot: 0,
            view: view.map(|view| view.window.view.clone()),
            panes: set.map(|set| set.fingerprint),
            source: set.map(|set| pipeline.sources[set.source].fingerprint),
            pipeline: index,
            pipeline_name: pipeline.name.clone(),
            policies: Vec::new(),
            algorithm: detector::build(&spec.using, &crate::stages::values(&spec.options), &features)?,
            id: format!("{}.{}", pipeline.name, spec.name),
            sinks: Vec::new(),
            spec: spec.clone(),
            is_inner: true,
        })
    }

    /// Whether it watches the view whose window this is.
    pub(super) fn is_on(&self, window: &ClosedWindow) -> bool {
        (self.version, self.pipeline) == (window.version, window.pipeline)
            && self.spec.input == DetectorInput::View(window.view)
    }

    /// Whether a state of one is a state of the other.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        self.learns_the_same(other) && self.spec.options == other.spec.options
    }

    /// Whether what one has learned means something to the other.
    pub(super) fn learns_the_same(&self, other: &Self) -> bool {
        let names = |columns: &[(String, usize)]| columns.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let (a, b) = (&self.spec, &other.spec);
        a.using == b.using && names(&a.keys) == names(&b.keys) && names(&a.features) == names(&b.features)
    }

    /// A state as it was written. With other parameters the entity learns anew, and its alarm stays.
    pub(super) fn restore(&self, key: &str, snapshot: &[u8]) -> Box<dyn State> {
        let seed = seed(&self.id, key);
        let restored = self.algorithm.restore(seed, snapshot);
        restored.unwrap_or_else(|_| self.algorithm.fresh(seed))
    }

    pub(super) fn keys(&self, columns: &[ArrayRef], row: usize) -> BTreeMap<String, Value> {
        self.spec
            .keys
            .iter()
            .map(|(name, at)| (name.clone(), json::value(&columns[*at], row)))
            .collect()
    }

    pub(super) fn entity<'a>(&self, part: &'a mut Part, target: &BTreeMap<String, Value>) -> &'a mut Entity {
        let entities = &mut part.entities[self.slot];
        let number = self.number(entities, target);
        &mut entities[number]
    }

    fn number(&self, entities: &mut Entities, target: &BTreeMap<String, Value>) -> u32 {
        let key = self.key(target);
        entities.number(&key, || Entity {
            state: self.algorithm.fresh(seed(&self.id, &key)),
            meta: Meta {
                target: target.clone(),
                last_ms: i64::MIN,
                ..Meta::default()
            },
            version: self.version,
            ahead: None,
            includes: -1,
            unwritten_since: None,
        })
    }

    pub(super) fn key(&self, target: &BTreeMap<String, Value>) -> String {
        let values: Vec<&Value> = self.spec.keys.iter().map(|(name, _)| &target[name]).collect();
        serde_json::to_string(&values).expect("JSON values serialise")
    }

    /// The entity's number and score of each row; `None` where its state already includes this window.
    pub(super) fn score(
        &self,
        part: &mut Part,
        offset: i64,
        window: &ClosedWindow,
    ) -> Result<Vec<Option<(u32, Score)>>, arrow::error::ArrowError> {
        let features = self.features(&window.rows)?;
        let keys = self.spec.keys.iter();
        let keys: Vec<ArrayRef> = keys.map(|(_, at)| Arc::clone(window.rows.column(*at))).collect();
        let entities = &mut part.entities[self.slot];
        let bytes = entities.bytes(&keys)?;
        let mut values = Vec::with_capacity(window.rows.num_rows() * features.len());
        let mut scores = vec![None; window.rows.num_rows()];
        let mut learns = Vec::with_capacity(scores.len());
        for (row, score) in scores.iter_mut().enumerate() {
            let bytes = bytes.as_ref().map(|bytes| bytes.row(row).data());
            let number = bytes.and_then(|bytes| entities.seen(bytes)).unwrap_or_else(|| {
                let number = self.number(entities, &self.keys(window.rows.columns(), row));
                if let Some(bytes) = bytes {
                    entities.remember(bytes, number);
                }
                number
            });
            let entity = &mut entities[number];
            if offset <= entity.includes {
                continue;
            }
            entity.meta.last_ms = window.end_ms;
            entity.dirty(offset);
            let is_open = |target| part.open.contains_key(&target_of(self, &target).1);
            learns.push(part.open.is_empty() || !is_open(self.keys(window.rows.columns(), row)));
            let known = |column: &Float64Array| column.is_valid(row).then(|| column.value(row));
            values.extend(features.iter().map(|column| known(column).unwrap_or(f64::NAN)));
            *score = Some((number, Score::default()));
        }
        let scored = scores.iter().flatten().zip(learns).enumerate();
        let rows: Vec<(usize, Row<'_>)> = scored
            .map(|(at, ((number, _), learn))| {
                let row = Row {
                    time_ms: window.end_ms,
                    features: &values[at * features.len()..][..features.len()],
                    learn,
                };
                (*number as usize, row)
            })
            .collect();
        let mut scored = scores.iter_mut().flatten();
        slab::score(
            entities.list(),
            |place| &mut *known(place).state,
            &rows,
            |_, said| {
                if let Some((_, score)) = scored.next() {
                    score.clone_from(said);
                }
            },
        );
        Ok(scores)
    }

    fn features(&self, rows: &RecordBatch) -> Result<Vec<Float64Array>, arrow::error::ArrowError> {
        let columns = self.spec.features.iter();
        let columns = columns.map(|(_, column)| cast(rows.column(*column), &DataType::Float64));
        columns
            .map(|column| Ok(column?.as_primitive::<Float64Type>().clone()))
            .collect()
    }

    /// WHEN and CLEAR WHEN of every policy, for all rows at once.
    pub(super) fn rulings(
        &self,
        rows: &RecordBatch,
        scored: &[Option<(u32, Score)>],
    ) -> Result<Vec<Ruling>, arrow::error::ArrowError> {
        // Of a row that the entity's state includes already nobody asks: its ruling is passed over.
        let score: Float64Array = scored
            .iter()
            .map(|scored| Some(scored.as_ref().map_or(0.0, |(_, score)| score.score)))
            .collect();
        let alarm: BooleanArray = scored
            .iter()
            .map(|scored| Some(scored.as_ref().is_some_and(|(_, score)| score.is_anomaly())))
            .collect();
        let mut rulings = Vec::new();
        for policy in &self.policies {
            let mut columns: Vec<ArrayRef> = vec![Arc::new(score.clone()), Arc::new(alarm.clone())];
            columns.extend(rows.columns().iter().cloned());
            let input = RecordBatch::try_new(Arc::clone(&policy.input), columns)?;
            let met = |expression: &Option<Arc<dyn datafusion::physical_expr::PhysicalExpr>>| match expression {
                None => Ok(None),
                Some(condition) => expression::met(condition, &input)
                    .map(Some)
                    .map_err(|error| arrow::error::ArrowError::ExternalError(Box::new(error))),
            };
            let when = met(&policy.when)?.unwrap_or_else(|| alarm.clone());
            rulings.push(Ruling {
                when,
                clear: met(&policy.clear)?,
            });
        }
        Ok(rulings)
    }

    /// Brings an entity's alarm up to date with one window. `None` when there is nothing to say of it.
    pub(super) fn alarm(&self, alarm: &mut Alarm, is_anomaly: bool, rulings: &[Ruling], row: usize) -> Option<Change> {
        let mut change = Change::default();
        for (policy, ruling) in self.policies.iter().zip(rulings) {
            let meets = ruling.when.is_valid(row) && ruling.when.value(row);
            if meets {
                alarm.active.insert(policy.name.clone(), 0);
                change.meets.push(policy.name.clone());
            } else if let Some(run) = alarm.active.get_mut(&policy.name) {
                let clear = ruling
                    .clear
                    .as_ref()
                    .is_none_or(|clear| clear.is_valid(row) && clear.value(row));
                *run = if clear { *run + 1 } else { 0 };
                if *run >= policy.clear_windows.max(1) {
                    alarm.active.remove(&policy.name);
                    change.clears.push(policy.name.clone());
                }
            }
        }
        let ended = alarm.alarming && !is_anomaly && alarm.active.is_empty();
        alarm.alarming = is_anomaly || (alarm.alarming && !ended);
        let speak = is_anomaly || ended || !change.meets.is_empty() || !change.clears.is_empty();
        speak.then_some(change)
    }

    pub(super) fn anomaly(
        &self,
        rows: &RecordBatch,
        row: usize,
        window: &ClosedWindow,
        score: &Score,
        change: Change,
    ) -> Anomaly {
        let number = |column: usize| {
            let value = cast(rows.column(column), &DataType::Float64).ok()?;
            let value = value.as_primitive::<Float64Type>();
            (value.is_valid(row) && value.value(row).is_finite()).then(|| value.value(row))
        };
        let features = self.spec.features.iter();
        Anomaly {
            target: self.keys(rows.columns(), row),
            pipeline: self.pipeline_name.clone(),
            detector: self.spec.name.clone(),
            window_start: window.start_ms,
            window_end: window.end_ms,
            score: score.score,
            is_anomaly: score.is_anomaly(),
            features: features
                .clone()
                .map(|(name, column)| (name.clone(), number(*column)))
                .collect(),
            contributions: features
                .zip(&score.contributions)
                .map(|((name, _), part)| (name.clone(), *part))
                .collect(),
            columns: self
                .spec
                .columns
                .iter()
                .map(|(name, at)| (name.clone(), json::value(rows.column(*at), row)))
                .collect(),
            meets: change.meets,
            clears: change.clears,
            telemetry_healthy: true,
        }
    }

    pub(super) fn event(
        &self,
        topics: &Topics,
        target: &BTreeMap<String, Value>,
        anomaly: &Anomaly,
    ) -> protocol::Output {
        let key = self.subject(topics, target);
        let name = if anomaly.is_anomaly { id::anomaly } else { id::clearing };
        let mint = name(
            &self.pipeline_name,
            &self.spec.name,
            &key,
            anomaly.window_start,
            anomaly.window_end,
        );
        let source = format!("/homeostat/{}/{}", topics.tenant(), self.pipeline_name);
        let event = CloudEvent::new(
            mint,
            topics.tenant(),
            &source,
            cloudevent::ANOMALY,
            &key,
            anomaly.window_end,
        );
        event.output(topics.anomalies(), anomaly)
    }

    /// A new level that the detector has accepted at this row.
    pub(super) fn level_shift(
        &self,
        topics: &Topics,
        target: &BTreeMap<String, Value>,
        window: &ClosedWindow,
        shift: &detector::LevelShift,
    ) -> protocol::Output {
        let (feature, _) = &self.spec.features[shift.feature];
        let data = LevelShift {
            target: target.clone(),
            pipeline: self.pipeline_name.clone(),
            detector: self.spec.name.clone(),
            window_start: window.start_ms,
            window_end: window.end_ms,
            feature: feature.clone(),
            old_level: shift.old_level,
            new_level: shift.new_level,
            since: shift.since_ms,
        };
        let key = self.subject(topics, target);
        let mint = id::level_shift(
            &self.pipeline_name,
            &self.spec.name,
            &key,
            feature,
            window.start_ms,
            window.end_ms,
        );
        let source = format!("/homeostat/{}/{}", topics.tenant(), self.pipeline_name);
        CloudEvent::new(
            mint,
            topics.tenant(),
            &source,
            cloudevent::LEVEL_SHIFT,
            &key,
            window.end_ms,
        )
        .output(topics.anomalies(), &data)
    }

    /// The key of the target that an entity's events are about.
    fn subject(&self, topics: &Topics, target: &BTreeMap<String, Value>) -> String {
        let (_, key) = target_of(self, target);
        key.replacen('|', &format!("{}|", topics.tenant()), 1)
    }
}

/// The target that an entity's anomalies are about: the service that the policies name, or the first key.
pub(super) fn target_of(watch: &Watch, target: &BTreeMap<String, Value>) -> (Target, String) {
    let named = watch.policies.first().map(|policy| policy.target.as_str());
    let first = watch.spec.keys.first().map(|(name, _)| name.as_str());
    let column = named.or(first).unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let name = target.get(column).map(text).unwrap_or_default();
    let rest: Vec<String> = target
        .iter()
        .filter(|(key, _)| *key != column)
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    let mut found = Target::service("", &name);
    if !rest.is_empty() {
        found.scope = "instance".to_owned();
        found.id = rest.join(",");
    }
    let key = found.key();
    (found, key)
}

pub(super) struct Ruling {
    pub(super) when: BooleanArray,
    pub(super) clear: Option<BooleanArray>,
}

#[derive(Clone, Default)]
pub(super) struct Change {
    pub(super) meets: Vec<String>,
    pub(super) clears: Vec<String>,
}
