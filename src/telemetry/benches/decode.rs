//! What a record costs from bytes to Arrow columns, on one core: `cargo bench -p telemetry`.
//!
//! The corpora are tens of megabytes and no record equals the one before, so that records come from memory and no branch
//! is learned by heart. Every figure is the median of several passes. A name as argument runs those that contain it.

use std::{
    fs,
    hint::black_box,
    sync::{Arc, LazyLock},
    time::Instant,
};

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use telemetry::{Decoder, Format, RecordMeta, dictionary, map_entry, schema};

const PASSES: usize = 7;
const CORPUS_BYTES: usize = 1 << 20;
/// Rows after which a batch is taken, as the aggregate stage does.
const BATCH_ROWS: usize = 8192;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    println!("{:<44}{:>9}{:>10}{:>12}", "", "B/row", "ns/row", "M rows/s");
    for case in json_cases().into_iter().chain(otlp_cases()) {
        if wanted.is_empty() || wanted.iter().any(|name| case.name.contains(name)) {
            case.run();
        }
    }
}

/// Time on the processor, where the kernel tells it, so that others on the machine are not counted.
fn clock_ns() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let scheduled = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let on_processor = scheduled.and_then(|text| text.split(' ').next()?.parse().ok());
    on_processor.unwrap_or_else(|| START.elapsed().as_nanos() as f64)
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
        let mut random = Random(88_172_645_463_325_252);
        let mut records = Vec::new();
        let mut size = 0;
        while size < CORPUS_BYTES {
            let record = (self.corpus)(&mut random);
            size += record.len();
            records.push(record);
        }
        let mut nanoseconds: Vec<f64> = (0..PASSES).map(|_| self.pass(&records)).collect();
        nanoseconds.sort_by(f64::total_cmp);
        let rows = self.rows(&records);
        let ns = nanoseconds[PASSES / 2] / rows as f64;
        let bytes = size as f64 / rows as f64;
        println!("{:<44}{bytes:>9.0}{ns:>10.1}{:>12.1}", self.name, 1000.0 / ns);
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

/// Xorshift: the same corpus in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
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
    let case = |name: &str, columns: &Arc<Schema>, corpus: fn(&mut Random) -> Vec<u8>| Case {
        name: format!("json {name}"),
        decoder: Decoder::new(Format::Json, Arc::clone(columns), &[]).expect("JSON has these types"),
        corpus: Box::new(corpus),
    };
    vec![
        case("5 columns of 5", &columns, |random| metric(random).plain()),
        case("4 columns of 5", &four, |random| metric(random).plain()),
        case("4 columns of 7, other order", &four, |random| {
            metric(random).other_order()
        }),
        case("4 columns of 5, order at random", &four, |random| {
            metric(random).any_order(random)
        }),
        case("4 columns, 1 % escaped, 1 % missing", &four, |random| {
            metric(random).uneven(random)
        }),
    ]
}

struct Metric {
    ts: u64,
    service: u64,
    instance: u64,
    name: &'static str,
    value: f64,
}

fn metric(random: &mut Random) -> Metric {
    const NAMES: [&str; 5] = [
        "http.server.duration",
        "http.server.errors",
        "cpu.utilization",
        "memory.rss",
        "queue.depth",
    ];
    Metric {
        ts: 1_700_000_000_000 + random.below(600_000),
        service: random.below(100),
        instance: random.below(10),
        name: NAMES[random.below(5) as usize],
        value: random.below(100_000) as f64 / 1000.0,
    }
}

impl Metric {
    fn fields(&self) -> [String; 5] {
        let Self {
            ts,
            service,
            instance,
            name,
            value,
        } = self;
        [
            format!(r#""ts":{ts}"#),
            format!(r#""service":"svc-{service:04}""#),
            format!(r#""instance":"svc-{service:04}-{instance}""#),
            format!(r#""name":"{name}""#),
            format!(r#""value":{value:.3}"#),
        ]
    }

    fn plain(&self) -> Vec<u8> {
        format!("{{{}}}", self.fields().join(",")).into_bytes()
    }

    fn other_order(&self) -> Vec<u8> {
        let [ts, service, instance, name, value] = self.fields();
        format!(r#"{{{name},{value},"unit":"ms","ok":true,{instance},{service},{ts}}}"#).into_bytes()
    }

    fn any_order(&self, random: &mut Random) -> Vec<u8> {
        let mut fields = self.fields();
        for index in (1..fields.len()).rev() {
            fields.swap(index, random.below(index as u64 + 1) as usize);
        }
        format!("{{{}}}", fields.join(",")).into_bytes()
    }

    fn uneven(&self, random: &mut Random) -> Vec<u8> {
        let [ts, service, instance, name, value] = self.fields();
        match random.below(100) {
            0 => format!(r#"{{{ts},"service":"sv\u0063-grüße","#) + &format!("{instance},{name},{value}}}"),
            1 => format!("{{{ts},{service},{instance},{name}}}"),
            _ => return self.plain(),
        }
        .into_bytes()
    }
}

fn otlp_cases() -> Vec<Case> {
    let shapes = [
        (
            "dense, 512 a record",
            Shape {
                resources: 1,
                metrics: 8,
                points: 64,
                kind: Kind::Number,
            },
        ),
        (
            "68 resources a record",
            Shape {
                resources: 68,
                metrics: 1,
                points: 8,
                kind: Kind::Number,
            },
        ),
        (
            "sparse, own scope and metric",
            Shape {
                resources: 1,
                metrics: 512,
                points: 1,
                kind: Kind::Number,
            },
        ),
        (
            "one point a record",
            Shape {
                resources: 1,
                metrics: 1,
                points: 1,
                kind: Kind::Number,
            },
        ),
        (
            "histogram, 15 buckets",
            Shape {
                resources: 1,
                metrics: 8,
                points: 64,
                kind: Kind::Histogram,
            },
        ),
        (
            "exponential, 40 buckets",
            Shape {
                resources: 1,
                metrics: 8,
                points: 64,
                kind: Kind::Exponential,
            },
        ),
    ];
    let mut cases = Vec::new();
    for (name, shape) in shapes {
        for (columns, entry) in [("", false), (" + route", true)] {
            for backwards in [true, false] {
                let order = if backwards { "" } else { ", ascending" };
                cases.push(Case {
                    name: format!("otlp {name}{columns}{order}"),
                    decoder: otlp_decoder(shape.kind, entry),
                    corpus: Box::new(move |random| shape.record(random, backwards)),
                });
            }
        }
    }
    cases
}

/// What a window over a metric per service needs.
fn otlp_decoder(kind: Kind, entry: bool) -> Decoder {
    let format = Format::OtlpMetrics { json: false };
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

#[derive(Clone, Copy)]
enum Kind {
    Number,
    Histogram,
    Exponential,
}

#[derive(Clone, Copy)]
struct Shape {
    resources: usize,
    metrics: usize,
    points: usize,
    kind: Kind,
}

impl Shape {
    /// An export request; backwards as the Collector writes it.
    fn record(self, random: &mut Random, backwards: bool) -> Vec<u8> {
        let writer = Writer { backwards };
        let blocks = (0..self.resources).map(|_| {
            let service = random.below(100);
            let single = self.resources * self.metrics * self.points == 1;
            let mut attributes = vec![writer.attribute("service.name", &format!("service-{service}"))];
            attributes.push(writer.attribute("k8s.pod.name", &format!("service-{service}-{}", random.below(10))));
            if !single {
                for index in 0..6 {
                    attributes.push(writer.attribute(&format!("resource.attribute.{index}"), "some.value"));
                }
            }
            let attributes = attributes.into_iter().map(|attribute| bytes(1, &attribute)).collect();
            let resource = bytes(1, &writer.message(attributes));
            let mut block = vec![resource];
            let per_scope = if self.points == 1 { 1 } else { self.metrics };
            for _ in 0..self.metrics / per_scope {
                let scope = bytes(1, &writer.message(vec![bytes(1, b"io.opentelemetry.http")]));
                let metrics = (0..per_scope).map(|_| bytes(2, &self.metric(random, writer)));
                block.push(bytes(2, &writer.message([scope].into_iter().chain(metrics).collect())));
            }
            bytes(1, &writer.message(block))
        });
        blocks.collect::<Vec<_>>().concat()
    }

    fn metric(self, random: &mut Random, writer: Writer) -> Vec<u8> {
        let name = format!("http.server.metric.{}", random.below(20));
        let points: Vec<_> = (0..self.points)
            .map(|_| bytes(1, &self.point(random, writer)))
            .collect();
        let data = match self.kind {
            Kind::Number => bytes(5, &points.concat()),
            Kind::Histogram => bytes(9, &writer.message([points, vec![varint(2, 2)]].concat())),
            Kind::Exponential => bytes(10, &writer.message([points, vec![varint(2, 2)]].concat())),
        };
        writer.message(vec![bytes(1, name.as_bytes()), bytes(3, b"ms"), data])
    }

    fn point(self, random: &mut Random, writer: Writer) -> Vec<u8> {
        let route = format!("/api/v1/resource/{}", random.below(50));
        let method = ["GET", "POST", "PUT"][random.below(3) as usize];
        let pairs = [
            ("http.request.method", method.to_owned()),
            ("http.route", route),
            ("http.response.status_code", (200 + random.below(5)).to_string()),
            ("server.address", format!("10.0.0.{}", random.below(8))),
        ];
        let count = if self.resources * self.metrics * self.points == 1 {
            2
        } else {
            4
        };
        let attribute_number = match self.kind {
            Kind::Number => 7,
            Kind::Histogram => 9,
            Kind::Exponential => 1,
        };
        let attributes = pairs[..count]
            .iter()
            .map(|(key, value)| bytes(attribute_number, &writer.attribute(key, value)));
        let mut fields: Vec<_> = attributes.collect();
        let time = 1_700_000_000_000_000_000 + random.below(600_000_000_000);
        fields.push(fixed(2, time - 10_000_000_000));
        fields.push(fixed(3, time));
        let value = (random.below(100_000) as f64 / 1000.0).to_bits();
        match self.kind {
            Kind::Number => fields.push(fixed(4, value)),
            Kind::Histogram => {
                let packed = |count: usize| (0..count as u64).flat_map(u64::to_le_bytes).collect::<Vec<_>>();
                fields.extend([
                    fixed(4, 100),
                    fixed(5, value),
                    bytes(6, &packed(15)),
                    bytes(7, &packed(14)),
                ]);
            }
            Kind::Exponential => {
                let counts: Vec<u8> = (0..40).map(|_| random.below(100) as u8).collect();
                let buckets = writer.message(vec![varint(1, 4), bytes(2, &counts)]);
                fields.extend([fixed(4, 100), fixed(5, value), varint(6, 6), bytes(8, &buckets)]);
            }
        }
        writer.message(fields)
    }
}

/// Protobuf, from the first field to the last or from the last to the first.
#[derive(Clone, Copy)]
struct Writer {
    backwards: bool,
}

impl Writer {
    fn message(self, mut fields: Vec<Vec<u8>>) -> Vec<u8> {
        if self.backwards {
            fields.reverse();
        }
        fields.concat()
    }

    fn attribute(self, key: &str, value: &str) -> Vec<u8> {
        self.message(vec![bytes(1, key.as_bytes()), bytes(2, &bytes(1, value.as_bytes()))])
    }
}

fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn varint(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3), number(value)].concat()
}

fn fixed(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

fn bytes(field: u64, payload: &[u8]) -> Vec<u8> {
    [number(field << 3 | 2), number(payload.len() as u64), payload.to_vec()].concat()
}
