//! The shop as processes on the embedded broker: what a service says when it is well, and after each fault.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kafka::{Broker, Consumer, ConsumerConfig, Embedded, Polled, TopicConfig};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    metrics::v1::{MetricsData, metric, number_data_point},
};
use prost::Message;
use protocol::Batch;
use simulator::{
    Fault,
    control::Switchboard,
    demo::TELEMETRY,
    graph::SHOP,
    service::{HEARTBEATS_TOPIC, METRICS_TOPIC, SPANS_TOPIC, start_log},
    visitors,
};

/// The whole shop; every process ends with it.
struct Shop {
    folder: tempfile::TempDir,
    broker: Embedded,
    board: Switchboard,
    children: BTreeMap<&'static str, Child>,
}

impl Shop {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let broker = Embedded::start().unwrap();
        broker
            .ensure_topics(&TELEMETRY.map(|(topic, partitions)| TopicConfig::new(topic, partitions)))
            .unwrap();
        let board = Switchboard::open(folder.path()).unwrap();
        let mut shop = Self {
            folder,
            broker,
            board,
            children: BTreeMap::new(),
        };
        for role in SHOP {
            shop.start(role.name);
        }
        let visitors = shop.process("visit").spawn().unwrap();
        shop.children.insert(visitors::NAME, visitors);
        shop.board
            .wait_for(&SHOP.map(|role| role.name), Duration::from_secs(20))
            .unwrap();
        shop
    }

    fn process(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_homeostat-shop"));
        command
            .arg(verb)
            .arg("--folder")
            .arg(self.folder.path())
            .args(["--seed", "3"])
            .stderr(Stdio::null());
        command
    }

    fn start(&mut self, service: &'static str) {
        let mut command = self.process("serve");
        command.args(["--service", service, "--bootstrap", self.broker.bootstrap()]);
        command.env(
            "HOMEOSTAT_ACTION_ID",
            format!("action-{}", self.children.contains_key(service)),
        );
        if let Some(mut old) = self.children.insert(service, command.spawn().unwrap()) {
            let _ = old.kill();
            old.wait().unwrap();
        }
    }

    fn follow(&self) -> Telemetry {
        let mut consumer = self.broker.consumer(&ConsumerConfig::new("test", None)).unwrap();
        let mut positions = Vec::new();
        for (topic, partitions) in TELEMETRY {
            for partition in kafka::partitions_of(topic, partitions) {
                let (_, end) = self.broker.watermarks(&partition).unwrap();
                positions.push((partition, end));
            }
        }
        consumer.assign(&positions).unwrap();
        Telemetry {
            consumer,
            heard: BTreeMap::new(),
        }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.board.close();
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What was heard of a service.
#[derive(Clone, Debug, Default)]
struct Heard {
    beats: u32,
    instances: std::collections::BTreeSet<String>,
    memory_mib: f64,
    own_s: f64,
    requests: u64,
    internal_errors: u64,
    spans: u32,
    children_spans: u32,
}

struct Telemetry {
    consumer: Box<dyn Consumer>,
    heard: BTreeMap<String, Heard>,
}

impl Telemetry {
    /// Listens anew until the condition is met.
    fn until(&mut self, timeout: Duration, met: impl Fn(&BTreeMap<String, Heard>) -> bool) -> bool {
        self.heard.clear();
        let deadline = Instant::now() + timeout;
        let mut batch = Batch::default();
        while Instant::now() < deadline {
            if self.consumer.poll(Duration::from_millis(50), &mut batch).unwrap() == Polled::Records {
                for record in batch.iter() {
                    assert_eq!(record.key, None, "the Collector writes no keys");
                    self.take(&record.partition.topic, record.value.unwrap());
                }
                if met(&self.heard) {
                    return true;
                }
            }
        }
        false
    }

    fn take(&mut self, topic: &str, value: &[u8]) {
        match topic {
            HEARTBEATS_TOPIC => {
                let beat: serde_json::Value = serde_json::from_slice(value).unwrap();
                let heard = self
                    .heard
                    .entry(beat["service"].as_str().unwrap().to_owned())
                    .or_default();
                heard.beats += 1;
                heard.instances.insert(beat["instance"].as_str().unwrap().to_owned());
            }
            METRICS_TOPIC => self.metrics(&MetricsData::decode(value).unwrap()),
            SPANS_TOPIC => {
                let spans = ExportTraceServiceRequest::decode(value).unwrap();
                for block in &spans.resource_spans {
                    let heard = self.heard.entry(service(block.resource.as_ref())).or_default();
                    let all = block.scope_spans.iter().flat_map(|scope| &scope.spans);
                    heard.spans += all.clone().count() as u32;
                    heard.children_spans += all.filter(|span| !span.parent_span_id.is_empty()).count() as u32;
                }
            }
            other => panic!("{other}"),
        }
    }

    fn metrics(&mut self, data: &MetricsData) {
        for block in &data.resource_metrics {
            let heard = self.heard.entry(service(block.resource.as_ref())).or_default();
            for metric in block.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
                match (&*metric.name, metric.data.as_ref().unwrap()) {
                    ("process.memory.usage", metric::Data::Sum(sum)) => {
                        let Some(number_data_point::Value::AsInt(bytes)) = sum.data_points[0].value else {
                            panic!()
                        };
                        heard.memory_mib = bytes as f64 / f64::from(1 << 20);
                    }
                    ("shop.request.own.duration", metric::Data::Histogram(histogram)) => {
                        let point = &histogram.data_points[0];
                        heard.own_s = point.sum.unwrap() / point.count as f64;
                    }
                    ("http.server.request.duration", metric::Data::Histogram(histogram)) => {
                        for point in &histogram.data_points {
                            let internal = point.attributes.iter().any(|attribute| {
                                attribute.key == "error.type" && text(attribute.value.as_ref()) == Some("internal")
                            });
                            heard.requests += point.count;
                            heard.internal_errors += if internal { point.count } else { 0 };
                        }
                    }
                    (name, data) => panic!("{name}: {data:?}"),
                }
            }
        }
    }
}

fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> Option<&str> {
    match value?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn service(resource: Option<&opentelemetry_proto::tonic::resource::v1::Resource>) -> String {
    let name = resource
        .unwrap()
        .attributes
        .iter()
        .find(|attribute| attribute.key == "service.name")
        .unwrap();
    text(name.value.as_ref()).unwrap().to_owned()
}

fn starts(folder: &Path, service: &str) -> Vec<serde_json::Value> {
    let log = std::fs::read_to_string(start_log(folder, service)).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn services_are_well_break_and_are_well_again_when_started_anew() {
    let mut shop = Shop::open();
    let mut telemetry = shop.follow();

    let well = |heard: &Heard| heard.beats >= 3 && heard.requests > 0 && heard.spans > 0 && heard.memory_mib > 1.0;
    let all_well = telemetry.until(PATIENCE, |heard| {
        SHOP.iter().all(|role| {
            heard
                .get(role.name)
                .is_some_and(|heard| well(heard) && heard.own_s < 0.15)
        })
    });
    assert!(all_well, "{:#?}", telemetry.heard);
    assert!(
        telemetry.heard["payment"].children_spans > 0,
        "a request keeps its trace from service to service"
    );

    // A crash: the process ends, callers fail at once, and its own log tells one start.
    let crashed = shop.board.inject("inventory", Fault::Crash).unwrap();
    assert!(!shop.children.get_mut("inventory").unwrap().wait().unwrap().success());
    assert_eq!(starts(shop.folder.path(), "inventory").len(), 1);

    // A hang: the process lives and says nothing more.
    let hung = shop.board.inject("recommendation", Fault::Hang).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let mut after = shop.follow();
    after.until(Duration::from_secs(2), |_| false);
    assert!(!after.heard.contains_key("recommendation") && !after.heard.contains_key("inventory"));
    assert!(
        shop.children
            .get_mut("recommendation")
            .unwrap()
            .try_wait()
            .unwrap()
            .is_none()
    );
    assert_ne!(hung.pid, crashed.pid);

    // A leak grows beyond what a healthy process ever takes; a slow service is slow by its own doing.
    shop.board.inject("cart", Fault::Leak).unwrap();
    shop.board.inject("payment", Fault::Latency).unwrap();
    let broken = after.until(PATIENCE, |heard| {
        let (Some(cart), Some(payment)) = (heard.get("cart"), heard.get("payment")) else {
            return false;
        };
        cart.memory_mib > 200.0 && payment.own_s > 0.25 && payment.internal_errors > 0
    });
    assert!(broken, "{:#?}", after.heard);
    assert!(
        after.heard["checkout"].own_s < 0.15,
        "who waits for a slow service is not slow itself"
    );

    // A fresh process is well, and its log tells what started it.
    for service in ["inventory", "recommendation", "cart", "payment"] {
        shop.start(service);
    }
    let healed = after.until(PATIENCE, |heard| {
        ["inventory", "recommendation", "cart", "payment"]
            .iter()
            .all(|service| {
                heard
                    .get(*service)
                    .is_some_and(|heard| well(heard) && heard.own_s < 0.15 && heard.memory_mib < 150.0)
            })
    });
    assert!(healed, "{:#?}", after.heard);
    let started = starts(shop.folder.path(), "cart");
    assert_eq!(
        (started.len(), started[1]["action_id"].as_str()),
        (2, Some("action-true"))
    );
}

#[test]
fn every_process_ends_with_the_channel() {
    let mut shop = Shop::open();
    shop.board.inject("shipping", Fault::Hang).unwrap();
    shop.board.close();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline
        && shop
            .children
            .values_mut()
            .any(|child| child.try_wait().unwrap().is_none())
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    let children = shop.children.iter_mut();
    let left: Vec<_> = children
        .filter_map(|(name, child)| child.try_wait().unwrap().is_none().then_some(name))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_service_that_is_not_of_the_shop_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_homeostat-shop"))
        .args([
            "serve",
            "--service",
            "bakery",
            "--folder",
            "/nowhere",
            "--bootstrap",
            "127.0.0.1:1",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("bakery") && said.contains("checkout"), "{said}");
}
