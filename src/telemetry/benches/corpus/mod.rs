//! Records as benches read them: metrics as JSON, and export requests as a Collector or another client writes them.

use std::{
    fs,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

/// Time on the processor, where the kernel tells it, so that others on the machine are not counted.
pub fn clock_ns() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // The kernel counts at its ticks, every few milliseconds, and when a thread stops.
    thread::sleep(Duration::from_micros(1));
    let scheduled = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let on_processor = scheduled.and_then(|text| text.split(' ').next()?.parse().ok());
    on_processor.unwrap_or_else(|| START.elapsed().as_nanos() as f64)
}

/// Xorshift: the same corpus in every run.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        Self(88_172_645_463_325_252)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

/// One value of one metric of an instance of a service: five fields, about 105 bytes.
pub struct Metric {
    ts: u64,
    service: u64,
    instance: u64,
    name: &'static str,
    value: f64,
}

pub fn metric(random: &mut Random, ts: u64) -> Metric {
    const NAMES: [&str; 5] = [
        "http.server.duration",
        "http.server.errors",
        "cpu.utilization",
        "memory.rss",
        "queue.depth",
    ];
    Metric {
        ts,
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

    /// As most write it.
    pub fn plain(&self) -> Vec<u8> {
        format!("{{{}}}", self.fields().join(",")).into_bytes()
    }

    /// Another order, and two fields that nobody asks for.
    pub fn other_order(&self) -> Vec<u8> {
        let [ts, service, instance, name, value] = self.fields();
        format!(r#"{{{name},{value},"unit":"ms","ok":true,{instance},{service},{ts}}}"#).into_bytes()
    }

    /// Every record in an order of its own.
    pub fn any_order(&self, random: &mut Random) -> Vec<u8> {
        let mut fields = self.fields();
        for index in (1..fields.len()).rev() {
            fields.swap(index, random.below(index as u64 + 1) as usize);
        }
        format!("{{{}}}", fields.join(",")).into_bytes()
    }

    /// One string in a hundred is escaped and not ASCII, one record in a hundred has no value.
    pub fn uneven(&self, random: &mut Random) -> Vec<u8> {
        let [ts, service, instance, name, value] = self.fields();
        match random.below(100) {
            0 => format!(r#"{{{ts},"service":"sv\u0063-grüße","#) + &format!("{instance},{name},{value}}}"),
            1 => format!("{{{ts},{service},{instance},{name}}}"),
            _ => return self.plain(),
        }
        .into_bytes()
    }
}

#[derive(Clone, Copy)]
pub enum Kind {
    Number,
    Histogram,
    Exponential,
}

/// How the points of an export request are spread.
#[derive(Clone, Copy)]
pub struct Shape {
    pub resources: usize,
    pub metrics: usize,
    pub points: usize,
    pub kind: Kind,
}

impl Shape {
    /// Those that `docs/performance.md` tells of.
    pub const ALL: [(&str, Self); 6] = [
        ("dense, 512 a record", Self::new(1, 8, 64, Kind::Number)),
        ("68 resources a record", Self::new(68, 1, 8, Kind::Number)),
        ("sparse, own scope and metric", Self::new(1, 512, 1, Kind::Number)),
        ("one point a record", Self::new(1, 1, 1, Kind::Number)),
        ("histogram, 15 buckets", Self::new(1, 8, 64, Kind::Histogram)),
        ("exponential, 40 buckets", Self::new(1, 8, 64, Kind::Exponential)),
    ];

    const fn new(resources: usize, metrics: usize, points: usize, kind: Kind) -> Self {
        Self {
            resources,
            metrics,
            points,
            kind,
        }
    }

    pub fn rows(self) -> usize {
        self.resources * self.metrics * self.points
    }

    /// An export request whose points are of the half second before `ts`; backwards as the Collector writes it.
    pub fn record(self, random: &mut Random, ts: u64, backwards: bool) -> Vec<u8> {
        let writer = Writer { backwards };
        let blocks = (0..self.resources).map(|_| {
            let service = random.below(100);
            let single = self.rows() == 1;
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
                let metrics = (0..per_scope).map(|_| bytes(2, &self.metric(random, ts, writer)));
                block.push(bytes(2, &writer.message([scope].into_iter().chain(metrics).collect())));
            }
            bytes(1, &writer.message(block))
        });
        blocks.collect::<Vec<_>>().concat()
    }

    /// The same of numbers as the Collector's JSON.
    pub fn json(self, random: &mut Random, ts: u64) -> Vec<u8> {
        let attribute = |key: &str, value: &str| format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#);
        let blocks: Vec<String> = (0..self.resources)
            .map(|_| {
                let service = random.below(100);
                let pod = format!("service-{service}-{}", random.below(10));
                let mut attributes = vec![
                    attribute("service.name", &format!("service-{service}")),
                    attribute("k8s.pod.name", &pod),
                ];
                if self.rows() > 1 {
                    attributes.extend((0..6).map(|index| attribute(&format!("resource.attribute.{index}"), "some.value")));
                }
                let metrics: Vec<String> = (0..self.metrics).map(|_| self.metric_json(random, ts)).collect();
                let separator = match self.points {
                    1 => r#"]},{"scope":{"name":"io.opentelemetry.http"},"metrics":["#,
                    _ => ",",
                };
                format!(
                    r#"{{"resource":{{"attributes":[{}]}},"scopeMetrics":[{{"scope":{{"name":"io.opentelemetry.http"}},"metrics":[{}]}}]}}"#,
                    attributes.join(","),
                    metrics.join(separator)
                )
            })
            .collect();
        format!(r#"{{"resourceMetrics":[{}]}}"#, blocks.join(",")).into_bytes()
    }

    fn metric_json(self, random: &mut Random, ts: u64) -> String {
        let points: Vec<String> = (0..self.points)
            .map(|_| {
                let attributes: Vec<String> = self
                    .attributes(random)
                    .iter()
                    .map(|(key, value)| format!(r#"{{"key":"{key}","value":{{"stringValue":"{value}"}}}}"#))
                    .collect();
                let time = ts * 1_000_000 - random.below(500_000_000);
                format!(
                    r#"{{"attributes":[{}],"startTimeUnixNano":"{}","timeUnixNano":"{time}","asDouble":{:.3}}}"#,
                    attributes.join(","),
                    time - 10_000_000_000,
                    random.below(100_000) as f64 / 1000.0
                )
            })
            .collect();
        let name = random.below(20);
        format!(
            r#"{{"name":"http.server.metric.{name}","unit":"ms","gauge":{{"dataPoints":[{}]}}}}"#,
            points.join(",")
        )
    }

    fn attributes(self, random: &mut Random) -> Vec<(&'static str, String)> {
        let method = ["GET", "POST", "PUT"][random.below(3) as usize];
        let mut pairs = vec![
            ("http.request.method", method.to_owned()),
            ("http.route", format!("/api/v1/resource/{}", random.below(10))),
        ];
        if self.rows() > 1 {
            pairs.push(("http.response.status_code", (200 + random.below(5)).to_string()));
            pairs.push(("server.address", format!("10.0.0.{}", random.below(8))));
        }
        pairs
    }

    fn metric(self, random: &mut Random, ts: u64, writer: Writer) -> Vec<u8> {
        let name = format!("http.server.metric.{}", random.below(20));
        let points: Vec<_> = (0..self.points)
            .map(|_| bytes(1, &self.point(random, ts, writer)))
            .collect();
        let data = match self.kind {
            Kind::Number => bytes(5, &points.concat()),
            Kind::Histogram => bytes(9, &writer.message([points, vec![varint(2, 2)]].concat())),
            Kind::Exponential => bytes(10, &writer.message([points, vec![varint(2, 2)]].concat())),
        };
        writer.message(vec![bytes(1, name.as_bytes()), bytes(3, b"ms"), data])
    }

    fn point(self, random: &mut Random, ts: u64, writer: Writer) -> Vec<u8> {
        let attribute_number = match self.kind {
            Kind::Number => 7,
            Kind::Histogram => 9,
            Kind::Exponential => 1,
        };
        let mut fields: Vec<_> = self
            .attributes(random)
            .iter()
            .map(|(key, value)| bytes(attribute_number, &writer.attribute(key, value)))
            .collect();
        let time = ts * 1_000_000 - random.below(500_000_000);
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
