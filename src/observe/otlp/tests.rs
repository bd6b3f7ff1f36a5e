use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Option<Otlp>, String> {
    let find = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    };
    Otlp::from_variables(find).map_err(|error| error.to_string())
}

#[test]
fn the_environment_is_read_as_opentelemetry_lays_it_down() {
    assert_eq!(read(&[]), Ok(None));
    let otlp = read(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://metrics/push"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=1"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=prod,service.name=other",
        ),
    ]);
    let otlp = otlp.unwrap().unwrap();
    let traces = otlp.traces.clone().unwrap();
    assert_eq!(traces.url, "http://collector:4318/v1/traces");
    assert_eq!(traces.headers["api-key"], "a b");
    assert_eq!(otlp.metrics.as_ref().unwrap().url, "https://metrics/push");
    assert_eq!(otlp.metrics_interval, Duration::from_millis(500));
    let service = Service {
        name: "homeostat",
        version: "0",
    };
    let names = resource(&otlp, &service, Uuid::nil()).attributes;
    let name = names.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(*name, key_value("service.name", "other".into()));
    assert_eq!(
        read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_SDK_DISABLED", "true")
        ]),
        Ok(None)
    );
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
    for (variables, expected) in [
        (
            vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            vec![endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "nonsense")],
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (vec![endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz")], "%zz"),
        (
            vec![endpoint, ("OTEL_METRIC_EXPORT_INTERVAL", "soon")],
            "OTEL_METRIC_EXPORT_INTERVAL",
        ),
    ] {
        let error = read(&variables).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
