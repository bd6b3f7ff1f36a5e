//! What a row costs on one core from the bytes of its record to the panes, in the stages that `homeostat run` runs, without Kafka:
//! by format and shape, by window, and by stage: `cargo bench --workspace --bench rates`.
//!
//! No record equals the one before and a corpus is larger than the caches, so that records come from memory and no branch is learned
//! by heart. Medians of passes, each by a new stage, in time on the processor. A name as argument runs the cases that contain it.

#[path = "../../telemetry/benches/corpus/mod.rs"]
mod corpus;

use std::{collections::BTreeMap, hint::black_box, sync::Arc, time::Instant};

use corpus::{Kind, Metric, Random, Shape, clock_ns, metric};
use engine::aggregate::Decoders;
use homeostat::{
    config,
    processor::{Processor, StageName},
    stages::aggregate::Telemetry,
};
use kafka::{Memory, Shutdown, Switches, SystemClock, partitions_of};
use protocol::{Assignment, Batch, Clock, Outputs, Stage, TimestampKind, TopicPartition};
use remediation::Trust;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PASSES: usize = 7;
const PARTITIONS: i32 = 4;
const BEGIN_MS: u64 = 1_700_000_000_000;
/// As the workload of `bench-peers`: ten million rows in ten minutes.
const ROWS_PER_MS: usize = 16;
/// Two minutes of it.
const ROWS: usize = 2_000_000;
const CORPUS_BYTES: usize = 64 << 20;
/// About what one poll brings.
const BATCH_BYTES: usize = 512 << 10;
/// Batches between two commits.
const COMMIT_BATCHES: usize = 64;

const JSON: &str = "CREATE SOURCE app (service STRING, name STRING, value DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
WITH (connector = 'kafka', topic = 'app', format = 'json', 'scan.startup.mode' = 'earliest');";
const OTLP: &str = "CREATE SOURCE app WATERMARK FOR event_time AS event_time - INTERVAL '2' SECOND
WITH (connector = 'kafka', topic = 'app', format = 'FORMAT', 'scan.startup.mode' = 'earliest');";
const EVERY_WINDOW: &str = "CREATE DETECTOR every ON load KEY (service, name) FEATURES (n, mean, most, least)
USING static_threshold WITH (upper = -1);";

fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    println!("{:<52}{:>8}{:>10}{:>12}", "", "B/row", "ns/row", "M rows/s");
    let mut first = None;
    for case in json_cases() {
        if is_wanted(&case.name) {
            let ns = case.run()?;
            println!("{:<52}{:>29.2} of the first", "", *first.get_or_insert(ns) / ns);
        }
    }
    for case in otlp_cases() {
        if is_wanted(&case.name) {
            case.run()?;
        }
    }
    if is_wanted("stages") {
        stages()?;
    }
    if is_wanted("instances") {
        instances()?;
    }
    Ok(())
}

/// Makes the record whose last row is of a time.
type MakeRecord = Box<dyn Fn(&mut Random, u64) -> Vec<u8>>;

struct Case {
    name: String,
    pipeline: String,
    record: MakeRecord,
    rows_per_record: usize,
    /// Rows of the corpus; `None` is as many as fill it.
    rows: Option<usize>,
}

impl Case {
    /// Prints and returns ns a row.
    fn run(&self) -> anyhow::Result<f64> {
        let processor = processor(&self.pipeline)?;
        let (batches, rows) = self.batches();
        let size: usize = batches.iter().map(Batch::size).sum();
        let ns = median(PASSES, || Ok(aggregated(&processor, &batches)?.0))? / rows as f64;
        let bytes = size as f64 / rows as f64;
        println!("{:<52}{bytes:>8.0}{ns:>10.1}{:>12.1}", self.name, 1000.0 / ns);
        Ok(ns)
    }

    /// As polls bring them: one run of each partition in turn. And how many rows they hold.
    fn batches(&self) -> (Vec<Batch>, usize) {
        let mut random = Random::new();
        let (mut batches, mut rows, mut size) = (Vec::new(), 0, 0);
        let mut offsets = [0; PARTITIONS as usize];
        while self.rows.map_or(size < CORPUS_BYTES, |wanted| rows < wanted) {
            let mut batch = Batch::default();
            for (partition, offset) in offsets.iter_mut().enumerate() {
                let handle = batch.partition("app", partition as i32);
                let until = (partition + 1) * BATCH_BYTES / PARTITIONS as usize;
                while batch.size() < until {
                    rows += self.rows_per_record;
                    let value = (self.record)(&mut random, BEGIN_MS + (rows / ROWS_PER_MS) as u64);
                    push(&mut batch, handle, offset, &value);
                }
            }
            size += batch.size();
            batches.push(batch);
        }
        (batches, rows)
    }
}

fn json_cases() -> Vec<Case> {
    let case = |name: &str, window: &str, record: fn(Metric, &mut Random) -> Vec<u8>| Case {
        name: format!("json, {name}"),
        pipeline: format!("{JSON}\n{}", view(window)),
        record: Box::new(move |random, ts| {
            let ts = ts - random.below(500);
            record(metric(random, ts), random)
        }),
        rows_per_record: 1,
        rows: Some(ROWS),
    };
    const TUMBLE: &str = "TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND)";
    vec![
        case("tumble 10 s", TUMBLE, |metric, _| metric.plain()),
        case("tumble 10 s, other order, 2 more fields", TUMBLE, |metric, _| {
            metric.other_order()
        }),
        case("tumble 10 s, order at random", TUMBLE, |metric, random| {
            metric.any_order(random)
        }),
        case("tumble 10 s, 1 % escaped, 1 % missing", TUMBLE, |metric, random| {
            metric.uneven(random)
        }),
        case(
            "hop 60 s by 1 s",
            "HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '60' SECOND)",
            |metric, _| metric.plain(),
        ),
        case(
            "hop 1 h by 1 s",
            "HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '1' HOUR)",
            |metric, _| metric.plain(),
        ),
    ]
}

fn view(window: &str) -> String {
    format!(
        "CREATE FEATURE VIEW load AS
         SELECT service, name, window_start, window_end, count(*) AS n, avg(value) AS mean, max(value) AS most, min(value) AS least
         FROM {window} GROUP BY service, name, window_start, window_end;"
    )
}

/// Decoded, filtered by an attribute that a tenth of the points has, and folded per service and metric.
fn otlp_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, shape) in Shape::ALL {
        let what = match shape.kind {
            Kind::Number => "count(*) AS n, sum(value) AS total, min(value) AS least, max(value) AS most",
            Kind::Histogram | Kind::Exponential => "count(*) AS n, sum(count) AS events, sum(sum) AS total",
        };
        let pipeline = |format: &str| {
            format!(
                "{}\nCREATE FEATURE VIEW load AS SELECT service_name, metric_name, window_start, window_end, {what}
                 FROM TUMBLE(TABLE app, DESCRIPTOR(event_time), INTERVAL '10' SECOND)
                 WHERE attributes['http.route'] = '/api/v1/resource/3'
                 GROUP BY service_name, metric_name, window_start, window_end;",
                OTLP.replace("FORMAT", format)
            )
        };
        cases.push(Case {
            name: format!("otlp, {name}, a tenth passes"),
            pipeline: pipeline("otlp_metrics"),
            record: Box::new(move |random, ts| shape.record(random, ts, true)),
            rows_per_record: shape.rows(),
            rows: None,
        });
        if let Kind::Number = shape.kind {
            cases.push(Case {
                name: format!("otlp as json, {name}, a tenth passes"),
                pipeline: pipeline("otlp_metrics_json"),
                record: Box::new(move |random, ts| shape.json(random, ts)),
                rows_per_record: shape.rows(),
                rows: None,
            });
        }
    }
    cases
}

/// ns a record in each stage, where every window is an anomaly.
fn stages() -> anyhow::Result<()> {
    let case = Case {
        pipeline: format!("{}\n{EVERY_WINDOW}", json_cases().swap_remove(0).pipeline),
        ..json_cases().swap_remove(0)
    };
    let processor = processor(&case.pipeline)?;
    let (batches, rows) = case.batches();
    let (_, panes) = aggregated(&processor, &batches)?;
    let (_, anomalies) = fed(&processor, StageName::Detect, "homeostat.panes", &panes)?;
    let per_row = |ns: f64| ns / rows as f64;
    let decode = median(PASSES, || decoded(&processor, &batches))?;
    let aggregate = median(PASSES, || Ok(aggregated(&processor, &batches)?.0))?;
    let detect = median(PASSES, || {
        Ok(fed(&processor, StageName::Detect, "homeostat.panes", &panes)?.0)
    })?;
    let decide = median(PASSES, || {
        Ok(fed(&processor, StageName::Decide, "homeostat.anomalies", &anomalies)?.0)
    })?;
    println!(
        "\n{rows} JSON records, {} windows, ns a record by stage",
        anomalies.records.len()
    );
    println!("decode: JSON → columns             {:>8.1}", per_row(decode));
    println!(
        "filter, key, fold, seal            {:>8.1}",
        per_row(aggregate - decode)
    );
    println!("assemble, detect                   {:>8.1}", per_row(detect));
    println!("decide                             {:>8.1}", per_row(decide));
    Ok(())
}

/// Records per second of one aggregate instance and of two on cores of their own, each with records of its own, by the clock on the wall.
fn instances() -> anyhow::Result<()> {
    let case = || json_cases().swap_remove(0);
    let processor = processor(&case().pipeline)?;
    let records = [case().batches(), case().batches()];
    let rate = |count: usize| -> anyhow::Result<f64> {
        let ns = median(PASSES, || {
            let began = Instant::now();
            let passes: Vec<anyhow::Result<_>> = std::thread::scope(|scope| {
                let processor = &processor;
                let threads = records[..count]
                    .iter()
                    .map(|(batches, _)| scope.spawn(move || aggregated(processor, batches)));
                let threads: Vec<_> = threads.collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("a pass does not panic"))
                    .collect()
            });
            passes.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
            Ok(began.elapsed().as_nanos() as f64)
        })?;
        Ok((records[0].1 * count) as f64 / ns * 1e9)
    };
    let (one, two) = (rate(1)?, rate(2)?);
    println!(
        "\none aggregate instance {one:.0} records/s, two {two:.0}: {:.2} times as many",
        two / one
    );
    Ok(())
}

/// The median of passes after one that warms caches and allocator.
fn median(passes: usize, mut pass: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    pass()?;
    let mut values = (0..passes).map(|_| pass()).collect::<anyhow::Result<Vec<f64>>>()?;
    values.sort_by(f64::total_cmp);
    Ok(values[passes / 2])
}

fn decoded(processor: &Processor, batches: &[Batch]) -> anyhow::Result<f64> {
    let mut decoder = Telemetry.decoder(&processor.pipelines[0].sources[0])?;
    let began = clock_ns();
    for batch in batches {
        for record in batch.iter() {
            decoder.push(&record, 0).map_err(anyhow::Error::msg)?;
        }
        black_box(decoder.finish()?);
    }
    Ok(clock_ns() - began)
}

fn aggregated(processor: &Processor, batches: &[Batch]) -> anyhow::Result<(f64, Outputs)> {
    let mut aggregate = assigned(processor, StageName::Aggregate, "app", PARTITIONS)?;
    let mut panes = Outputs::default();
    let partition_counts = [("app".into(), PARTITIONS)];
    let clock = Clock {
        now_ms: BEGIN_MS as i64,
        caught_up: &[],
        partition_counts: &partition_counts,
    };
    let began = clock_ns();
    for (at, batch) in batches.iter().enumerate() {
        aggregate.step(batch, &mut panes)?;
        if at % COMMIT_BATCHES == COMMIT_BATCHES - 1 {
            aggregate.before_commit(&mut panes)?;
            aggregate.committed();
        }
    }
    aggregate.tick(clock, &mut panes)?;
    aggregate.before_commit(&mut panes)?;
    Ok((clock_ns() - began, panes))
}

fn processor(text: &str) -> anyhow::Result<Processor> {
    let pipeline = sql::compile("bench", text, &homeostat::pipelines::Detectors)
        .map_err(|refused| anyhow::anyhow!(refused.render("bench", text, false)))?;
    Ok(Processor {
        broker: Arc::new(Memory::new(Arc::new(SystemClock))),
        pipelines: Arc::from([pipeline]),
        versions: Vec::new(),
        config: config::load_text("")?,
        observer: Arc::new(()),
        shutdown: Shutdown::new(),
        signer: None,
        trust: Trust::default(),
        crash: None,
        switches: Switches::default(),
    })
}

fn push(batch: &mut Batch, handle: u32, offset: &mut i64, value: &[u8]) {
    batch.push(
        handle,
        *offset,
        (BEGIN_MS as i64, TimestampKind::Create),
        None,
        Some(value),
        [],
    );
    *offset += 1;
}

/// A stage that has been given every partition of a topic.
fn assigned(processor: &Processor, name: StageName, topic: &str, partitions: i32) -> anyhow::Result<Box<dyn Stage>> {
    let mut stage = processor.stage(name)?;
    for partition in partitions_of(topic, partitions) {
        let assignment = Assignment {
            committed: None,
            start_offset: 0,
            lookback_offset: None,
            log_start_offset: 0,
            log_end_offset: i64::MAX,
            partition_count: partitions,
        };
        stage.assigned(&partition, &assignment)?;
    }
    Ok(stage)
}

/// Nanoseconds that a stage takes for what another one has said on a topic, and what it says itself.
fn fed(processor: &Processor, name: StageName, topic: &str, said: &Outputs) -> anyhow::Result<(f64, Outputs)> {
    let mut stage = assigned(processor, name, topic, PARTITIONS)?;
    let mut batch = Batch::default();
    let mut offsets: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    for output in said.records.iter().filter(|output| &*output.topic == topic) {
        let partition = match (output.partition, &output.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => kafka::partition_of(key, PARTITIONS),
            (None, None) => 0,
        };
        let offset = offsets.entry(TopicPartition::new(topic, partition)).or_default();
        let handle = batch.partition(topic, partition);
        let headers = output
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        batch.push(
            handle,
            *offset,
            (BEGIN_MS as i64, TimestampKind::Create),
            output.key.as_deref(),
            output.value.as_deref(),
            headers,
        );
        *offset += 1;
    }
    let mut out = Outputs::default();
    let began = clock_ns();
    stage.step(&batch, &mut out)?;
    stage.before_commit(&mut out)?;
    Ok((clock_ns() - began, out))
}
