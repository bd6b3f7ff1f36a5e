use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use kafka::{Commit, Observer};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::any_value,
    resource::v1::Resource,
};
use prost::Message;
use protocol::{Output, TopicPartition, id};
use uuid::Uuid;

use super::*;

/// A collector: what it received, decoded.
#[derive(Clone, Default)]
struct Collector {
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
}

impl Collector {
    fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .with_state(collector.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        (collector, url)
    }

    /// Spans with the name of the service that sent them.
    fn spans(&self) -> Vec<(String, opentelemetry_proto::tonic::trace::v1::Span)> {
        let requests = self.traces.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources
            .flat_map(|spans| {
                let service = service_name(spans.resource.as_ref().unwrap());
                let spans = spans.scope_spans.iter().flat_map(|scope| scope.spans.clone());
                spans.map(move |span| (service.clone(), span))
            })
            .collect()
    }
}

async fn traces(State(collector): State<Collector>, body: Bytes) {
    collector
        .traces
        .lock()
        .unwrap()
        .push(ExportTraceServiceRequest::decode(body).unwrap());
}

async fn metrics(State(collector): State<Collector>, body: Bytes) {
    collector
        .metrics
        .lock()
        .unwrap()
        .push(ExportMetricsServiceRequest::decode(body).unwrap());
}

fn service_name(resource: &Resource) -> String {
    let attribute = resource
        .attributes
        .iter()
        .find(|attribute| attribute.key == "service.name")
        .unwrap();
    match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(name) => name.clone(),
        other => panic!("{other:?}"),
    }
}

fn observe(name: &'static str, endpoint: Option<&str>) -> Observation {
    let otlp = endpoint.map(|endpoint| {
        let at = |path: &str| {
            Some(Endpoint {
                url: format!("{endpoint}{path}"),
                headers: BTreeMap::new(),
            })
        };
        Otlp {
            traces: at("/v1/traces"),
            metrics: at("/v1/metrics"),
            metrics_interval: Duration::from_millis(200),
            timeout: Duration::from_secs(2),
            service_name: None,
            resource: BTreeMap::new(),
        }
    });
    let service = Service { name, version: "0" };
    Observation::start(&service, "127.0.0.1:0".parse().unwrap(), otlp).unwrap()
}

fn commit<'a>(stage: &'static str, outputs: &'a [Output], lag: &'a [(TopicPartition, i64)]) -> Commit<'a> {
    Commit {
        stage,
        outputs,
        records: 10,
        bytes: 1_000,
        step_s: 0.01,
        commit_s: 0.02,
        lag,
        now_ms: 0,
    }
}

#[test]
fn one_trace_has_spans_of_both_processes() {
    let (collector, url) = Collector::start();
    let chain = incident::tests::chain();
    let processor = observe("homeostat", Some(&url));
    processor.stages().committed(&commit("decide", &chain, &[]));

    let executor = observe("homeostat-executor", Some(&url));
    let header = |name: &str| {
        let found = chain[1].headers.iter().find(|(header, _)| header == name).unwrap();
        String::from_utf8(found.1.clone()).unwrap()
    };
    let incident: Uuid = header("ce_correlationid").parse().unwrap();
    let action: Uuid = header("ce_id").parse().unwrap();
    let (trace_id, parent) = parse_traceparent(&id::traceparent(incident, action)).unwrap();
    executor.spans().record(Span {
        trace_id,
        span_id: id::span_id(id::outcome(action, 1, "succeeded")),
        parent: Some(parent),
        name: "restart".into(),
        kind: Kind::Consumer,
        start_ms: 1,
        end_ms: 2,
        attributes: vec![],
        error: None,
    });
    // Ending delivers what is left.
    drop((processor, executor));

    let spans = collector.spans();
    let mut names: Vec<(&str, &str)> = spans.iter().map(|(service, span)| (&**service, &*span.name)).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            ("homeostat", "action restart"),
            ("homeostat", "anomaly slow"),
            ("homeostat", "decision act"),
            ("homeostat", "verdict recovered"),
            ("homeostat-executor", "restart"),
        ]
    );
    assert!(spans.iter().all(|(_, span)| span.trace_id == id::trace_id(incident)));
    let roots = spans.iter().filter(|(_, span)| span.parent_span_id.is_empty());
    assert_eq!(roots.count(), 1);
    for (_, span) in spans.iter().filter(|(_, span)| !span.parent_span_id.is_empty()) {
        assert!(
            spans.iter().any(|(_, parent)| parent.span_id == span.parent_span_id),
            "{} hangs loose",
            span.name
        );
    }
}

#[test]
fn the_same_metrics_are_served_and_exported() {
    let (collector, url) = Collector::start();
    let observation = observe("homeostat", Some(&url));
    let stages = observation.stages();
    let lag = [(TopicPartition::new("telemetry", 1), 42)];
    stages.committed(&commit("aggregate", &[], &lag));
    stages.sample(
        "decide",
        "decisions_total",
        &[("kind", "refuse"), ("reason", "cooldown")],
        3.0,
    );
    let text = get(&observation, "/metrics").1;
    assert!(
        text.contains("homeostat_lag{partition=\"1\",stage=\"aggregate\",topic=\"telemetry\"} 42"),
        "{text}"
    );
    assert!(
        text.contains("homeostat_decisions_total{kind=\"refuse\",reason=\"cooldown\",stage=\"decide\"} 3"),
        "{text}"
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while collector.metrics.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
    drop(observation);
    let requests = collector.metrics.lock().unwrap();
    let exported = &requests.last().unwrap().resource_metrics[0].scope_metrics[0].metrics;
    let names: Vec<&str> = exported.iter().map(|metric| &*metric.name).collect();
    let mut served: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    served.dedup();
    assert_eq!(names, served);
}

#[test]
fn health_and_readiness_are_answered() {
    let observation = observe("homeostat", None);
    assert_eq!(get(&observation, "/healthz").0, 200);
    assert_eq!(get(&observation, "/readyz"), (503, "starting\n".into()));
    let stages = observation.stages();
    stages.sample("detect", "entities", &[], 0.0);
    assert_eq!(get(&observation, "/readyz").0, 200);
    let partition = TopicPartition::new("panes", 2);
    stages.stopped("detect", &partition, "offset 5 is not in the log");
    assert_eq!(
        get(&observation, "/readyz"),
        (503, "panes[2] stands still: offset 5 is not in the log\n".into())
    );
    stages.restored("detect", &[partition], 7, 0.1);
    assert_eq!(get(&observation, "/readyz").0, 200);
}

#[test]
fn an_endpoint_that_is_away_holds_nobody_up() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let observation = observe("homeostat", Some(&format!("http://{nobody}")));
    let started = Instant::now();
    for _ in 0..9_000 {
        observation
            .stages()
            .committed(&commit("decide", &incident::tests::chain()[2..], &[]));
    }
    let metrics = Arc::clone(observation.metrics());
    drop(observation);
    assert!(started.elapsed() < Duration::from_secs(20));
    let dropped: f64 = metrics
        .snapshot()
        .iter()
        .filter(|snapshot| snapshot.name == "homeostat_spans_dropped_total")
        .map(|snapshot| {
            if let metrics::Value::Counter(total) = snapshot.value {
                total
            } else {
                0.0
            }
        })
        .sum();
    assert_eq!(dropped, 9_000.0);
}

#[test]
fn a_taken_address_is_told_with_its_place() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let service = Service {
        name: "homeostat",
        version: "0",
    };
    let error = Observation::start(&service, taken.local_addr().unwrap(), None)
        .err()
        .unwrap();
    assert!(error.to_string().contains("http.listen"), "{error}");
}

fn get(observation: &Observation, path: &str) -> (u16, String) {
    let response = reqwest::blocking::get(format!("http://{}{path}", observation.address())).unwrap();
    (response.status().as_u16(), response.text().unwrap())
}
