//! Preview: the rows of one view, live, for whoever writes it. Reads the sources' topics beside the fleet and leaves nothing behind: no
//! group, no commit, no topic, no sink.
//!
//! Records go through the stages that run in production. Where it does not begin at the beginning, windows count from the first
//! pane that it has seen whole; late rows and dead letters are left out. A partition that is too far ahead of the
//! slowest is paused, as live.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use arrow::array::RecordBatch;
use engine::{
    aggregate::{Aggregate, nothing_known},
    assemble::ClosedWindow,
    spec::{DetectorInput, Pipeline},
};
use kafka::{Broker, Consumer, ConsumerConfig, Polled};
use protocol::{Assignment, Batch, Clock, Committed, Outputs, Stage, TopicPartition, Topics, message::Anomaly};

use crate::{
    error::Refused,
    stages::{
        aggregate,
        detect::{self, Detect, Tap},
    },
};

/// How long a broker may take to find the offset of a time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Latest,
    Earliest,
    /// The first record that the broker took at this time, milliseconds since the Unix epoch.
    Time(i64),
}

/// A view that is being watched.
pub struct Preview {
    aggregate: Aggregate,
    detect: Detect,
    consumer: Box<dyn Consumer>,
    /// Reads the tables that rows are joined with.
    tables: Option<Box<dyn Consumer>>,
    topics: Topics,
    paused: BTreeSet<TopicPartition>,
    records: Batch,
    panes: Batch,
    panes_offset: i64,
    closed: Arc<Mutex<Vec<RecordBatch>>>,
}

impl Preview {
    /// Fails when a source's topic is not there.
    pub fn new(broker: &dyn Broker, pipeline: &Pipeline, view: usize, from: From) -> anyhow::Result<Self> {
        let pipeline = alone(pipeline, view);
        let pipelines: Arc<[Pipeline]> = vec![pipeline].into();
        let topics = Topics::new("preview.");
        let mut aggregate = aggregate::stage(Arc::clone(&pipelines), topics.clone(), 1)?;
        let closed = Arc::new(Mutex::new(Vec::new()));
        let mut detect = Detect::new(Arc::clone(&pipelines), topics.clone(), detect::Options::default())?
            .tapped(Box::new(Rows(Arc::clone(&closed))));
        let mut consumer = broker.consumer(&ConsumerConfig::new("homeostat-preview", None))?;
        let mut positions = Vec::new();
        for topic in aggregate.inputs() {
            let count = broker.partition_count(&topic)?;
            let count = count.ok_or_else(|| {
                Refused::new(format!("there is no topic {topic}")).help("a preview reads topics that are there")
            })?;
            for place in kafka::partitions_of(&topic, count) {
                let assignment = assignment(broker, &mut *consumer, &place, count, from)?;
                let offset = aggregate.assigned(&place, &assignment)?;
                positions.push((place, offset));
            }
        }
        let first = Assignment {
            committed: None,
            start_offset: 0,
            lookback_offset: None,
            log_start_offset: 0,
            log_end_offset: 0,
            partition_count: 1,
        };
        detect.assigned(&TopicPartition::new(topics.panes(), 0), &first)?;
        let tables = read_tables(broker, &mut aggregate)?;
        consumer.assign(&positions)?;
        Ok(Self {
            aggregate,
            detect,
            consumer,
            tables,
            topics,
            paused: BTreeSet::new(),
            records: Batch::default(),
            panes: Batch::default(),
            panes_offset: 0,
            closed,
        })
    }

    /// Reads on for at most so long; the rows of the windows that closed.
    pub fn turn(&mut self, timeout: Duration, now_ms: i64) -> anyhow::Result<Vec<RecordBatch>> {
        let mut out = Outputs::default();
        if let Some(tables) = &mut self.tables
            && tables.poll(Duration::ZERO, &mut self.records)? == Polled::Records
        {
            self.aggregate.step(&self.records, &mut out)?;
        }
        match self.consumer.poll(timeout, &mut self.records)? {
            Polled::Records => self.aggregate.step(&self.records, &mut out)?,
            Polled::OutOfRange(place) => {
                anyhow::bail!("{} {} lost the records that come next", place.topic, place.partition)
            }
            Polled::Idle | Polled::Assigned(_) | Polled::Revoked { .. } => {}
        }
        let clock = Clock {
            now_ms,
            caught_up: &self.consumer.caught_up(),
            partition_counts: &[],
        };
        self.aggregate.tick(clock, &mut out)?;
        self.aggregate.before_commit(&mut out)?;
        self.aggregate.committed();
        self.align()?;
        self.forward(out)?;
        Ok(std::mem::take(&mut *lock(&self.closed)))
    }

    fn align(&mut self) -> anyhow::Result<()> {
        let wanted = self.aggregate.paused().into_iter().collect();
        Ok(kafka::pause_only(&mut *self.consumer, &mut self.paused, wanted)?)
    }

    /// Panes and progress to detect; whatever else the stages say stays unsaid.
    fn forward(&mut self, out: Outputs) -> anyhow::Result<()> {
        let topic = self.topics.panes();
        self.panes.clear();
        let handle = self.panes.partition(&topic, 0);
        for output in out.records.iter().filter(|output| *output.topic == *topic) {
            let headers = output
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice()));
            let time = (0, protocol::TimestampKind::Create);
            self.panes
                .push(handle, self.panes_offset, time, None, output.value.as_deref(), headers);
            self.panes_offset += 1;
        }
        let mut unsaid = Outputs::default();
        self.detect.step(&self.panes, &mut unsaid)?;
        self.detect.before_commit(&mut unsaid)?;
        self.detect.committed();
        Ok(())
    }
}

/// Reads tables to their ends, and tells who reads on.
fn read_tables(broker: &dyn Broker, aggregate: &mut Aggregate) -> anyhow::Result<Option<Box<dyn Consumer>>> {
    let (mut positions, mut ends) = (Vec::new(), Vec::new());
    for topic in aggregate.tables() {
        let count = broker.partition_count(&topic)?;
        let count =
            count.ok_or_else(|| Refused::new(format!("there is no topic {topic}")).help("a table is read from it"))?;
        for place in kafka::partitions_of(&topic, count) {
            let (low, high) = broker.watermarks(&place)?;
            ends.push((place.clone(), high));
            positions.push((place, low));
        }
    }
    if positions.is_empty() {
        return Ok(None);
    }
    let mut consumer = broker.consumer(&ConsumerConfig::new("homeostat-preview-tables", None))?;
    consumer.assign(&positions)?;
    let deadline = Instant::now() + PATIENCE;
    let (mut batch, mut unsaid) = (Batch::default(), Outputs::default());
    loop {
        ends.retain(|(place, end)| consumer.position(place).unwrap_or_default() < *end);
        let Some((place, end)) = ends.first() else {
            return Ok(Some(consumer));
        };
        if Instant::now() >= deadline {
            anyhow::bail!("{place} was not read up to offset {end} within {PATIENCE:?}");
        }
        if consumer.poll(Duration::from_millis(100), &mut batch)? == Polled::Records {
            aggregate.step(&batch, &mut unsaid)?;
        }
    }
}

/// Where reading begins. Not at the beginning, nothing is known of the rows before.
fn assignment(
    broker: &dyn Broker,
    consumer: &mut dyn Consumer,
    place: &TopicPartition,
    partition_count: i32,
    from: From,
) -> anyhow::Result<Assignment> {
    let (low, high) = broker.watermarks(place)?;
    let start_offset = match from {
        From::Earliest => low,
        From::Latest => high,
        From::Time(ms) => consumer
            .offset_for_time(place, ms, PATIENCE)
            .with_context(|| format!("finding the time in {} {}", place.topic, place.partition))?
            .unwrap_or(high),
    };
    let committed = (from != From::Earliest).then(|| Committed {
        offset: start_offset,
        metadata: nothing_known(),
    });
    Ok(Assignment {
        committed,
        start_offset,
        lookback_offset: None,
        log_start_offset: low,
        log_end_offset: high,
        partition_count,
    })
}

/// The pipeline with this view and what it needs.
fn alone(pipeline: &Pipeline, view: usize) -> Pipeline {
    let mut view = pipeline.views[view].clone();
    let sets = view.pane_sets.iter().map(|set| {
        let mut set = pipeline.pane_sets[*set].clone();
        set.windows = vec![view.window.clone()];
        set
    });
    let mut pane_sets: Vec<_> = sets.collect();
    let used: Vec<usize> = {
        let sources: BTreeSet<usize> = pane_sets.iter().map(|set| set.source).collect();
        sources.into_iter().collect()
    };
    for set in &mut pane_sets {
        set.source = used.partition_point(|source| *source < set.source);
    }
    view.pane_sets = (0..pane_sets.len()).collect();
    let detectors = view.judged.iter_mut().flat_map(|judged| &mut judged.detectors);
    detectors.for_each(|detector| detector.input = DetectorInput::View(0));
    Pipeline {
        name: pipeline.name.clone(),
        sources: used.iter().map(|source| pipeline.sources[*source].clone()).collect(),
        pane_sets,
        views: vec![view],
        detectors: Vec::new(),
        policies: Vec::new(),
        sinks: Vec::new(),
    }
}

/// Keeps the rows of closed windows.
struct Rows(Arc<Mutex<Vec<RecordBatch>>>);

impl Tap for Rows {
    fn closed(&mut self, window: &ClosedWindow) {
        if window.rows.num_rows() > 0 {
            lock(&self.0).push(window.rows.clone());
        }
    }

    fn scored(&mut self, _score: &Anomaly) {}

    fn silent(&mut self, _score: &Anomaly) {}
}

fn lock(closed: &Mutex<Vec<RecordBatch>>) -> std::sync::MutexGuard<'_, Vec<RecordBatch>> {
    closed.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kafka::{Memory, TopicConfig, VirtualClock};

    use super::*;
    use crate::{pipelines::Detectors, stages::rows::write_rows};

    const BEGIN_MS: i64 = 1_790_000_000_000;

    fn pipeline() -> Pipeline {
        let text = "CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND)
              WITH (topic = 'app', format = 'json');
            CREATE FEATURE VIEW other AS SELECT window_end, max(ms) AS m FROM TUMBLE(app, ts, INTERVAL '1' MINUTE) GROUP BY window_end;
            CREATE FEATURE VIEW v AS SELECT service, window_start, count(*) AS n FROM TUMBLE(app, ts, INTERVAL '10' SECOND)
              WHERE ms >= 0 GROUP BY service, window_start;
            CREATE SINK s FROM v WITH (topic = 'rows');";
        sql::compile("p", text, &Detectors).unwrap_or_else(|found| panic!("{}", found.render("p", text, false)))
    }

    fn feed(memory: &Memory, seconds: std::ops::Range<i64>) {
        for second in seconds {
            let ts = BEGIN_MS + second * 1_000;
            let row = format!("{{\"service\":\"a\",\"ms\":1,\"ts\":{ts}}}");
            let place = TopicPartition::new("app", (second % 2) as i32);
            memory.append(&place, ts, None, Some(row.as_bytes()), &[]).unwrap();
        }
    }

    /// (start in seconds, rows)
    fn rows(preview: &mut Preview) -> Vec<(i64, i64)> {
        let mut text = Vec::new();
        for turn in 0..20 {
            let closed = preview.turn(Duration::ZERO, BEGIN_MS + turn).unwrap();
            closed.iter().for_each(|rows| write_rows(rows, &mut text));
        }
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let row: serde_json::Value = serde_json::from_slice(line).unwrap();
                let start = protocol::time::from_rfc3339(row["window_start"].as_str().unwrap()).unwrap();
                ((start - BEGIN_MS) / 1_000, row["n"].as_i64().unwrap())
            })
            .collect()
    }

    #[test]
    fn a_preview_shows_whole_windows_and_leaves_nothing_behind() {
        let memory = Memory::new(Arc::new(VirtualClock::new(BEGIN_MS)));
        let mut app = TopicConfig::new("app", 2);
        app.log_append_time = false;
        memory.ensure_topics(&[app]).unwrap();
        feed(&memory, 3..37);
        let pipeline = pipeline();
        let mut earliest = Preview::new(&memory, &pipeline, 1, From::Earliest).unwrap();
        assert_eq!(rows(&mut earliest), [(0, 7), (10, 10), (20, 10)]);
        let mut latest = Preview::new(&memory, &pipeline, 1, From::Latest).unwrap();
        assert_eq!(rows(&mut latest), []);
        let mut since = Preview::new(&memory, &pipeline, 1, From::Time(BEGIN_MS + 15_000)).unwrap();
        assert_eq!(rows(&mut since), [(20, 10)]);
        feed(&memory, 37..63);
        assert_eq!(rows(&mut earliest), [(30, 10), (40, 10), (50, 10)]);
        // The window that was open when it began is not whole.
        assert_eq!(rows(&mut latest), [(40, 10), (50, 10)]);
        assert!(memory.partition_count("rows").unwrap().is_none());
        let error = Preview::new(&Memory::new(Arc::new(VirtualClock::new(0))), &pipeline, 1, From::Latest);
        assert!(error.err().unwrap().to_string().contains("no topic app"));
    }
}
