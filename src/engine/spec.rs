//! What the engine runs: the plan of one pipeline, as the `sql` crate compiles it.
//!
//! Expressions are DataFusion's physical expressions, planned once. Indices point into the pipeline's own lists.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::physical_expr::{PhysicalExpr, aggregate::AggregateFunctionExpr};

/// Event times that are taken, year 1 to year 9997: what can be written as a time, with the longest window around it.
pub const EVENT_TIMES_MS: RangeInclusive<i64> = -62_135_596_800_000..=253_339_228_799_999;

/// One validated pipeline: everything in one file, applied as a set.
#[derive(Clone, Debug)]
pub struct Pipeline {
    pub name: String,
    pub sources: Vec<SourceSpec>,
    pub pane_sets: Vec<PaneSetSpec>,
    pub views: Vec<ViewSpec>,
    pub detectors: Vec<DetectorSpec>,
    pub policies: Vec<PolicySpec>,
    pub sinks: Vec<SinkSpec>,
}

/// A stream of rows from a topic.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    pub name: String,
    /// Of topic, format, schema and watermark clauses: equal sources of several pipelines share a fingerprint.
    pub fingerprint: u64,
    pub topic: String,
    pub format: Format,
    pub start: StartupMode,
    /// Columns that some pane set uses, in the order in which the decoder delivers them; the event time is one of them.
    pub schema: SchemaRef,
    /// Declared columns that come from the record, not from its value: (column index, what).
    pub metadata: Vec<(usize, Metadata)>,
    /// Nested path of each column in a JSON document, where it is not the column's name.
    pub paths: Vec<Option<Vec<String>>>,
    /// Index of the event time in `schema`; its type is a timestamp of some unit in UTC.
    pub event_time: usize,
    pub delay_ms: i64,
    /// `None`: never idle.
    pub idle_timeout_ms: Option<i64>,
    pub max_future_skew_ms: i64,
    /// Watermark alignment: a partition further ahead of the slowest than this is paused.
    pub max_drift_ms: i64,
}

/// How the value of a record is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    OtlpMetrics { json: bool },
    OtlpLogs { json: bool },
    OtlpSpans { json: bool },
    Json,
    Heartbeat,
    PrometheusJson,
    TelegrafJson,
    Alertmanager,
}

impl Format {
    /// Whether the event time is when the log took the record, never the producer's clock.
    pub fn is_timed_by_log(self) -> bool {
        matches!(self, Self::Heartbeat | Self::Alertmanager)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StartupMode {
    /// From the committed offset; the latest where there is none.
    GroupOffsets,
    Earliest,
    Latest,
    TimestampMs(i64),
}

/// A METADATA column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metadata {
    Key,
    Partition,
    Offset,
    Timestamp,
    Topic,
    Headers,
}

/// Partial aggregates per key and pane, shared by every view with the same source, filter and keys.
#[derive(Clone, Debug)]
pub struct PaneSetSpec {
    /// Of source, filter, keys, aggregates and width: detect merges equal fingerprints only.
    pub fingerprint: u64,
    /// Index into [`Pipeline::sources`].
    pub source: usize,
    /// Over the source's schema, boolean.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// Over the source's schema.
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Name and type of each key.
    pub key_fields: Vec<FieldRef>,
    pub aggregates: Vec<AggregateSpec>,
    /// Largest divisor, not above the cap, of the gcd of size, slide, offset and lateness of all views served.
    pub width_ms: i64,
    /// The windows served, for lateness: a row is late for a view when none of the view's windows over it is open.
    pub windows: Vec<WindowSpec>,
    /// ON STATE LIMIT.
    pub state_limit: Option<StateLimit>,
}

/// How much one pane of one source partition may hold, and what becomes of rows of further keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateLimit {
    pub budget: Budget,
    pub beyond: Beyond,
}

/// The most that a pane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Budget {
    Keys(u32),
    /// Of keys and of their partials, as they are counted: see `engine::panes`.
    Bytes(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Beyond {
    /// They are dead letters.
    Reject,
    /// What the partition's open panes hold is published, as partials that later ones add to: nothing is lost.
    Evict,
    /// The stage stops.
    Fail,
}

/// An aggregate: a native accumulator, or any mergeable DataFusion aggregate through its state.
#[derive(Clone, Debug)]
pub struct AggregateSpec {
    pub kind: AggregateKind,
    /// Over the source's schema. Native numeric aggregates have theirs cast to Float64, or to Int64 where the exact integer matters.
    pub args: Vec<Arc<dyn PhysicalExpr>>,
    /// `FILTER (WHERE …)`, boolean.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// Type of the result, as DataFusion's own aggregate has it.
    pub output: DataType,
}

#[derive(Clone, Debug)]
pub enum AggregateKind {
    /// Rows where the argument is not NULL; all rows when there is no argument.
    Count,
    Sum,
    Avg,
    Min,
    Max,
    /// Sample forms; NULL for one row.
    Var,
    Stddev,
    VarPop,
    StddevPop,
    /// Of pairs of Float64, second argument first: the dependent variable leads, as in SQL's `regr_slope(y, x)`.
    Pairs(PairStatistic),
    /// The value at the least or greatest event time: args are value and event time. Of equal times the least value is
    /// first and the greatest last.
    First,
    Last,
    /// By DDSketch: relative error at most 1 %.
    Quantile {
        q: f64,
    },
    /// Increase of a counter per second over the window, by event time, resets counted: args are value and event time.
    Rate,
    /// Increase of a counter over the window, resets counted.
    Increase,
    /// Last value less the first, of a gauge.
    Delta,
    /// Any other: state and merge through DataFusion.
    Other(Arc<AggregateFunctionExpr>),
}

/// What is told of pairs of numbers. Pairs with a NULL are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairStatistic {
    Correlation,
    CovarianceSample,
    CovariancePopulation,
    /// Of the least-squares line: change of the first per unit of the second.
    Slope,
    Intercept,
    R2,
    /// Slope over an event time in milliseconds, per second.
    SlopePerSecond,
}

/// The windows of a view, in milliseconds. Window k is `[k·slide + offset, k·slide + offset + size)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowSpec {
    /// The view these belong to: `pipeline.view`, named in late records.
    pub view: String,
    pub size_ms: i64,
    pub slide_ms: i64,
    pub offset_ms: i64,
    /// A window closes, once, when the watermark passes its end by this much.
    pub lateness_ms: i64,
    /// Rows that no open window takes go to this topic (with the fleet's prefix), or to `late`.
    pub late_topic: Option<String>,
    /// Early rows: at every multiple of this, plus the offset, what an open window holds so far.
    pub early_every_ms: Option<i64>,
    /// Sessions, each of one group: rows with gaps of at most this. The last two of the view's aggregates are then the least and
    /// the greatest event time, and the other lengths say only how wide a pane is at most: slide a part of the gap, size longer than the gap
    /// by one slide.
    pub session_gap_ms: Option<i64>,
}

impl WindowSpec {
    /// Whether both cut the same windows and close them at the same time.
    pub fn cuts_as(&self, other: &Self) -> bool {
        let cut = |window: &Self| {
            (
                window.size_ms,
                window.slide_ms,
                window.offset_ms,
                window.lateness_ms,
                window.session_gap_ms,
            )
        };
        cut(self) == cut(other)
    }
}

/// Windows over a pane set, projected into feature rows.
#[derive(Clone, Debug)]
pub struct ViewSpec {
    pub name: String,
    /// Indices into [`Pipeline::pane_sets`]: one, or one for each part of a UNION ALL, equal in keys and aggregates.
    pub pane_sets: Vec<usize>,
    pub window: WindowSpec,
    /// The aggregates this view uses: indices into the pane sets'.
    pub aggregates: Vec<usize>,
    /// Schema that `projection` and `having` are planned over: the pane set's keys, `window_start`, `window_end`
    /// (millisecond timestamps in UTC), then `aggregates` in order, named `agg_0`, `agg_1`, ….
    pub input: SchemaRef,
    /// SELECT list, over `input`.
    pub projection: Vec<Arc<dyn PhysicalExpr>>,
    /// The rows that its windows yield; where it speaks early, `is_final` comes after the SELECT list.
    pub output: SchemaRef,
    pub having: Option<Arc<dyn PhysicalExpr>>,
    /// Rows for keys that were silent for up to so many windows.
    pub fill_missing_windows: u32,
    /// ML_DETECT_ANOMALIES: detectors judge the rows, and what is written is computed from both.
    pub judged: Option<JudgedSpec>,
}

impl ViewSpec {
    /// The rows that sinks and people see.
    pub fn schema(&self) -> &SchemaRef {
        self.judged.as_ref().map_or(&self.output, |judged| &judged.output)
    }
}

/// Detectors of a view's own, whose results are columns.
#[derive(Clone, Debug)]
pub struct JudgedSpec {
    /// On the view's rows; each has one feature.
    pub detectors: Vec<DetectorSpec>,
    /// For each detector, the index in the view's output of the time that its result repeats.
    pub times: Vec<usize>,
    /// Schema that `projection` and `filter` are planned over: the view's output, then for each detector `timestamp`,
    /// `actual_value`, `forecast_value`, `lower_bound`, `upper_bound` and `is_anomaly`.
    pub input: SchemaRef,
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// SELECT list, over `input`.
    pub projection: Vec<Arc<dyn PhysicalExpr>>,
    pub output: SchemaRef,
}

/// What a detector watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectorInput {
    /// Index into [`Pipeline::views`].
    View(usize),
    /// A `silence` detector directly on a source, through this pane set: its one aggregate is the greatest event time.
    PaneSet(usize),
}

/// A declared detector. Its algorithm and options are validated against the `detector` crate by the binary.
#[derive(Clone, Debug)]
pub struct DetectorSpec {
    pub name: String,
    pub input: DetectorInput,
    /// KEY columns: names, and their indices in the view's output (or in the pane set's keys).
    pub keys: Vec<(String, usize)>,
    /// FEATURES: names and indices in the view's output; numeric columns.
    pub features: Vec<(String, usize)>,
    pub using: String,
    /// WITH (…): names and values, as written.
    pub options: Vec<(String, OptionValue)>,
    /// Columns that policies refer to beside score and features: names and indices in the view's output.
    pub columns: Vec<(String, usize)>,
}

/// Rows on a topic, a record per row, keyed by the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSpec {
    pub name: String,
    pub input: SinkInput,
    pub format: SinkFormat,
    /// As it is written: no prefix, so that a source may read it.
    pub topic: String,
    /// Columns of a view's output that it groups by: names and indices.
    pub keys: Vec<(String, usize)>,
}

/// What a sink writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkInput {
    /// Every row of a view: index into [`Pipeline::views`].
    View(usize),
    /// Every score of a detector: index into [`Pipeline::detectors`].
    Detector(usize),
    /// Rows that no open window of a view takes: index into [`Pipeline::views`].
    Late(usize),
    /// What is no row of a source: index into [`Pipeline::sources`].
    DeadLetters(usize),
}

/// How a sink writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkFormat {
    /// A JSON object.
    Json,
    /// A CloudEvent 1.0 in JSON, with its attributes (structured mode).
    CloudEvents,
    /// OTLP in protobuf: a gauge per number.
    OtlpMetrics,
}

/// A literal in WITH (…).
#[derive(Clone, Debug, PartialEq)]
pub enum OptionValue {
    Number(f64),
    Text(String),
    Bool(bool),
}

/// A declared policy.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    pub name: String,
    /// Index into [`Pipeline::detectors`].
    pub detector: usize,
    /// Schema that `when` and `clear` are planned over: `score` (Float64), `is_anomaly` (Boolean), then the columns of the view.
    pub input: SchemaRef,
    pub when: Option<Arc<dyn PhysicalExpr>>,
    /// FOR k OF n WINDOWS; 1 of 1 when absent.
    pub for_k: u32,
    pub for_n: u32,
    pub clear: Option<Arc<dyn PhysicalExpr>>,
    pub clear_windows: u32,
    pub cooldown: Duration,
    /// LIMIT n ACTIONS PER interval, several.
    pub limits: Vec<(u32, Duration)>,
    pub action: ActionSpec,
    /// KEY column that names the service.
    pub target: String,
    pub params: Vec<(String, OptionValue)>,
    pub expires_after: Duration,
    pub mode: Mode,
    /// INTO: topic of the commands, with the fleet's prefix.
    pub into: String,
    /// Slide of the watched windows; the timeout of a silence detector.
    pub window_step_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionSpec {
    /// DO ACTION 'restart'
    Fixed(String),
    /// DO LADDER (restart, …)
    Ladder(Vec<String>),
    /// DO CHOOSE
    Choose,
}

/// MODE of a policy, as `protocol::message::Mode`.
pub use protocol::message::Mode;
