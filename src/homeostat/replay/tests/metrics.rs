//! Counters and histograms of OTLP, of every kind and temporality.

use super::*;

#[test]
fn counters_of_both_temporalities_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(
        "CREATE SOURCE m WITH (topic = 'm', format = 'otlp_metrics_json');
        CREATE FEATURE VIEW v AS SELECT attributes['name'] AS name, window_start, increase(value) AS i, rate(value) AS r,
          delta(value) AS d, increase(value) FILTER (WHERE value < 6) AS few
        FROM TUMBLE(m, event_time, INTERVAL '1' MINUTE) WHERE metric_name = 'requests' GROUP BY name, window_start HAVING increase(value) > 0;",
    );
    // A counter at 0, 10, 20 and 30 s that restarts before 30 s: as totals, and as the changes since the point before.
    let origin = 1_767_225_600_u64;
    let point = |name: &str, from: u64, at: u64, value: u64| {
        format!(
            "{{\"attributes\":[{{\"key\":\"name\",\"value\":{{\"stringValue\":\"{name}\"}}}}],\"startTimeUnixNano\":\"{}000000000\",\"timeUnixNano\":\"{}000000000\",\"asInt\":\"{value}\"}}",
            origin + from,
            origin + at
        )
    };
    let sum = |temporality: u8, points: Vec<String>| {
        format!(
            "{{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{{\"name\":\"requests\",\"sum\":{{\"aggregationTemporality\":{temporality},\"isMonotonic\":true,\"dataPoints\":[{}]}}}}]}}]}}]}}\n",
            points.join(",")
        )
    };
    let totals = [(0, 100), (10, 105), (20, 112), (30, 4)].map(|(at, value)| point("totals", 0, at, value));
    let changes = [(0, 10, 5), (10, 20, 7), (20, 30, 4)].map(|(from, at, value)| point("changes", from, at, value));
    let once = vec![point("once", 20, 40, 8)];
    let text = [sum(2, totals.to_vec()), sum(1, changes.to_vec()), sum(1, once)].concat();
    let path = write(folder.path(), "m.jsonl", &text);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let expected = r#"{"name":"changes","window_start":"2026-01-01T00:00:00.000Z","i":16.0,"r":0.5333333333333333,"d":16.0,"few":9.0}
{"name":"once","window_start":"2026-01-01T00:00:00.000Z","i":8.0,"r":0.4,"d":8.0,"few":null}
{"name":"totals","window_start":"2026-01-01T00:00:00.000Z","i":16.0,"r":0.5333333333333333,"d":-96.0,"few":null}
"#;
    assert_eq!(shown(&replayed.views[0]), expected);
    assert_eq!(run(&pipeline, std::slice::from_ref(&path), 5).0, replayed);
}

/// A histogram data point with a series' name in its attributes, times in seconds.
fn histogram_point(series: &str, from: u64, at: u64, counted: &str) -> String {
    let origin = 1_767_225_600;
    format!(
        "{{\"attributes\":[{{\"key\":\"route\",\"value\":{{\"stringValue\":\"{series}\"}}}}],\"startTimeUnixNano\":\"{}000000000\",\
         \"timeUnixNano\":\"{}000000000\",{counted}}}",
        origin + from,
        origin + at
    )
}

fn histogram_request(name: &str, kind: &str, temporality: u8, points: &[String]) -> String {
    format!(
        "{{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{{\"name\":\"{name}\",\"{kind}\":{{\"aggregationTemporality\":{temporality},\
         \"dataPoints\":[{}]}}}}]}}]}}]}}\n",
        points.join(",")
    )
}

#[test]
fn quantiles_of_histograms_of_every_kind_and_temporality() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(
        "CREATE SOURCE m WITH (topic = 'm', format = 'otlp_metrics_json');
        CREATE FEATURE VIEW v AS SELECT metric_name, window_start, histogram_quantile(0.5) AS p50, histogram_quantile(0.9) AS p90,
          count(*) AS n
        FROM HOP(m, event_time, INTERVAL '30' SECOND, INTERVAL '1' MINUTE) GROUP BY metric_name, window_start;",
    );
    let explicit = |buckets: [u64; 4]| {
        let buckets = buckets.map(|count| format!("\"{count}\"")).join(",");
        format!("\"count\":\"1\",\"bucketCounts\":[{buckets}],\"explicitBounds\":[1,2,4]")
    };
    let exponential = |offset: i32, buckets: &[u64]| {
        let buckets: Vec<String> = buckets.iter().map(|count| format!("\"{count}\"")).collect();
        let buckets = buckets.join(",");
        format!(
            "\"count\":\"1\",\"scale\":0,\"zeroCount\":\"0\",\"positive\":{{\"offset\":{offset},\"bucketCounts\":[{buckets}]}}"
        )
    };
    let changes = [
        histogram_point("a", 0, 10, &explicit([10, 0, 0, 0])),
        histogram_point("b", 0, 10, &explicit([0, 10, 10, 0])),
    ];
    // Two series beside each other, and one that restarts: 4 + 3 below 1, 4 from 1 to 2, 9 from 2 to 4.
    let totals = [
        histogram_point("a", 0, 10, &explicit([100, 7, 0, 0])),
        histogram_point("b", 0, 10, &explicit([5, 0, 2, 0])),
        histogram_point("a", 0, 20, &explicit([104, 11, 0, 0])),
        histogram_point("b", 0, 25, &explicit([5, 0, 4, 0])),
        histogram_point("b", 26, 28, &explicit([3, 0, 7, 0])),
    ];
    let powers = [histogram_point("a", 0, 10, &exponential(0, &[4, 4, 8]))];
    let once = [histogram_point("a", 0, 10, &explicit([1, 2, 3, 4]))];
    let text = [
        histogram_request("changes", "histogram", 1, &changes),
        histogram_request("totals", "histogram", 2, &totals),
        histogram_request("powers", "exponentialHistogram", 1, &powers),
        histogram_request("once", "histogram", 2, &once),
    ]
    .concat();
    let path = write(folder.path(), "m.jsonl", &text);
    let (replayed, refusals) = run(&pipeline, std::slice::from_ref(&path), 1);
    assert_eq!(refusals, Refusals::default());
    let expected = [
        ("changes", "1.5", "3.4", 2),
        ("once", "null", "null", 1),
        ("powers", "4.0", "7.2", 1),
        ("totals", "1.75", "3.5555555555555554", 5),
    ];
    for start in ["2025-12-31T23:59:30.000Z", "2026-01-01T00:00:00.000Z"] {
        for (name, p50, p90, n) in expected {
            let row = format!(
                "{{\"metric_name\":\"{name}\",\"window_start\":\"{start}\",\"p50\":{p50},\"p90\":{p90},\"n\":{n}}}\n"
            );
            assert!(
                shown(&replayed.views[0]).contains(&row),
                "{row}{}",
                shown(&replayed.views[0])
            );
        }
    }
    assert_eq!(run(&pipeline, std::slice::from_ref(&path), 5).0, replayed);
    let refused = |call: &str, format: &str| {
        let text = format!(
            "CREATE SOURCE m WITH (topic = 'm', format = '{format}');
            CREATE FEATURE VIEW v AS SELECT window_end, {call} AS q FROM TUMBLE(m, event_time, INTERVAL '1 m') GROUP BY window_end;"
        );
        let found = sql::compile("p", &text, &Detectors).unwrap_err();
        found.render("p", &text, false)
    };
    assert!(refused("histogram_quantile(99)", "otlp_metrics").contains("99 is not a share between 0 and 1"));
    assert!(refused("histogram_quantile(value)", "otlp_metrics").contains("the share of a quantile is a constant"));
    assert!(refused("histogram_quantile(0.9)", "otlp_spans").contains("the histograms of an otlp_metrics source"));
}
