//! What a record costs from bytes to Arrow columns, on one core: `cargo bench -p telemetry`.
//!
//! The corpora are tens of megabytes and no record equals the one before, so that records come from memory and no branch
//! is learned by heart. Every figure is the median of several passes. Beside OTLP stands what prost takes for the same records.
//! A name as argument runs those that contain it.

mod corpus;

use std::{hint::black_box, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use corpus::{Kind, Metric, Random, Shape, clock_ns, metric};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prost::Message;
use telemetry::{Decoder, Format, RecordMeta, dictionary, map_entry, schema};

const PASSES: usize = 7;
const CORPUS_BYTES: usize = 48 << 20;
/// Rows after which a batch is taken, as the aggregate stage does.
const BATCH_ROWS: usize = 8192;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    println!(
        "{:<44}{:>9}{:>10}{:>12}{:>14}",
        "", "B/row", "ns/row", "M rows/s", "prost ns/row"
    );
    for case in json_cases().into_iter().chain(otlp_cases()) {
        if wanted.is_empty() || wanted.iter().any(|name| case.name.contains(name)) {
            case.run();
        }
    }
}

/// Makes the next record.
type Corpus = Box<dyn Fn(&mut Random) -> Vec<u8>>;

struct Case {
    name: String,
    decoder: Decoder,
    corpus: Corpus,
}

impl Case {
    fn run(mut self) {
        let mut random = Random::new();
        let mut records = Vec::new();
        let mut size = 0;
        while size < CORPUS_BYTES {
            let record = (self.corpus)(&mut random);
            size += record.len();
            records.push(record);
        }
        let rows = self.rows(&records);
        let ns = median((0..PASSES).map(|_| self.pass(&records))) / rows as f64;
        let bytes = size as f64 / rows as f64;
        print!("{:<44}{bytes:>9.0}{ns:>10.1}{:>12.1}", self.name, 1000.0 / ns);
        match self.name.starts_with("otlp") {
            true => println!("{:>14.1}", by_prost(&records) / rows as f64),
            false => println!(),
        }
    }

    fn pass(&mut self, records: &[Vec<u8>]) -> f64 {
        let start = clock_ns();
        for record in records {
            let pushed = self.decoder.push(record, &RecordMeta::new(1, 2));
            pushed.expect("the corpus is valid");
            if self.decoder.rows() >= BATCH_ROWS {
                black_box(self.decoder.finish());
            }
        }
        black_box(self.decoder.finish());
        clock_ns() - start
    }

    fn rows(&mut self, records: &[Vec<u8>]) -> usize {
        let rows = records
            .iter()
            .map(|record| self.decoder.push(record, &RecordMeta::new(1, 2)));
        rows.map(|rows| rows.expect("the corpus is valid")).sum()
    }
}

/// What the generated decoder of OpenTelemetry's own crate takes for its messages alone, without a look at what they say.
fn by_prost(records: &[Vec<u8>]) -> f64 {
    median((0..PASSES).map(|_| {
        let start = clock_ns();
        for record in records {
            black_box(ExportMetricsServiceRequest::decode(record.as_slice()).expect("the corpus is valid"));
        }
        clock_ns() - start
    }))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn time(random: &mut Random) -> u64 {
    1_700_000_000_000 + random.below(600_000)
}

fn json_cases() -> Vec<Case> {
    let columns = Arc::new(Schema::new(vec![
        Field::new(
            "ts",
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            true,
        ),
        Field::new("service", dictionary(), true),
        Field::new("instance", dictionary(), true),
        Field::new("name", dictionary(), true),
        Field::new("value", DataType::Float64, true),
    ]));
    let four = Arc::new(columns.project(&[0, 1, 3, 4]).expect("there are five"));
    let case = |name: &str, columns: &Arc<Schema>, corpus: fn(Metric, &mut Random) -> Vec<u8>| Case {
        name: format!("json {name}"),
        decoder: Decoder::new(Format::Json, Arc::clone(columns), &[]).expect("JSON has these types"),
        corpus: Box::new(move |random| {
            let ts = time(random);
            corpus(metric(random, ts), random)
        }),
    };
    vec![
        case("5 columns of 5", &columns, |metric, _| metric.plain()),
        case("4 columns of 5", &four, |metric, _| metric.plain()),
        case("4 columns of 7, other order", &four, |metric, _| metric.other_order()),
        case("4 columns of 5, order at random", &four, |metric, random| {
            metric.any_order(random)
        }),
        case("4 columns, 1 % escaped, 1 % missing", &four, |metric, random| {
            metric.uneven(random)
        }),
    ]
}

fn otlp_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, shape) in Shape::ALL {
        for (columns, entry) in [("", false), (" + route", true)] {
            for backwards in [true, false] {
                let order = if backwards { "" } else { ", ascending" };
                cases.push(Case {
                    name: format!("otlp {name}{columns}{order}"),
                    decoder: otlp_decoder(shape.kind, entry, false),
                    corpus: Box::new(move |random| {
                        let ts = time(random);
                        shape.record(random, ts, backwards)
                    }),
                });
            }
        }
        if let Kind::Number = shape.kind {
            cases.push(Case {
                name: format!("json of otlp {name} + route"),
                decoder: otlp_decoder(shape.kind, true, true),
                corpus: Box::new(move |random| {
                    let ts = time(random);
                    shape.json(random, ts)
                }),
            });
        }
    }
    cases
}

/// What a window over a metric per service needs.
fn otlp_decoder(kind: Kind, entry: bool, json: bool) -> Decoder {
    let format = Format::OtlpMetrics { json };
    let values: &[&str] = match kind {
        Kind::Number => &["value"],
        Kind::Histogram | Kind::Exponential => &["count", "sum"],
    };
    let known = schema(format);
    let names = ["event_time", "service_name", "metric_name"].iter().chain(values);
    let mut fields: Vec<Field> = names
        .map(|name| known.field_with_name(name).expect("a column of the format").clone())
        .collect();
    if entry {
        fields.push(map_entry("route", "attributes", "http.route"));
    }
    Decoder::new(format, Arc::new(Schema::new(fields)), &[]).expect("columns of the format")
}
