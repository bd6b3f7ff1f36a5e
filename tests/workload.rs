//! The rows that the delivery tests feed, and what must come of them.

use std::collections::BTreeMap;

/// A pipeline that alarms about every window, so that what is published shows every window.
pub const PIPELINE: &str = "
CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND IDLE TIMEOUT INTERVAL '10' MINUTE MAX FUTURE SKEW INTERVAL '5' MINUTE)
WITH (connector = 'kafka', topic = '{prefix}app', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW load AS
SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND)
GROUP BY service, window_start, window_end;

CREATE DETECTOR every ON load KEY (service) FEATURES (n, total) USING static_threshold WITH (upper = 0);

CREATE POLICY restart_every ON every WHEN score >= 1 FOR 2 OF 3 WINDOWS
  COOLDOWN INTERVAL '1' DAY LIMIT 100 ACTIONS PER INTERVAL '1' HOUR
  DO ACTION 'restart' TARGET service EXPIRES AFTER INTERVAL '1' HOUR MODE AUTO;
";

/// Safeguards that depend on the wall clock are out of the way; the others stay.
pub const CONFIG: &str = "
[decide]
default_mode = \"auto\"
startup_grace = \"0s\"
settle = \"0s\"
settle_silent = \"0s\"
telemetry_lag_max = \"100years\"
fleet_sick_share = 1.0
fleet_sick_max = 1000
concurrency_share = 1.0
limits_fleet = [{ actions = 1000, per = \"1h\" }]
";

/// Event time of the first row: a multiple of a minute.
pub const BEGIN_MS: i64 = 1_790_000_040_000;

/// Rows of `services` services over `seconds`, each service's spread over all partitions, null keys, slightly out of order; then one
/// row per partition that lets every window close.
pub fn rows(services: usize, seconds: i64, per_second: usize, partitions: i32) -> Vec<(i32, Vec<u8>)> {
    let mut rows = Vec::new();
    let mut draw = 0x9e37_79b9_7f4a_7c15_u64;
    for second in 0..seconds {
        for service in 0..services {
            for at in 0..per_second {
                draw = draw
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let jitter = (draw >> 33) as i64 % 500;
                let ts = BEGIN_MS + second * 1_000 + (at as i64 * 1_000 / per_second as i64) - jitter;
                let partition = (draw >> 13) as i32 & 0x7fff_ffff;
                let ms = (draw >> 40) % 1_000;
                let json = format!("{{\"service\":\"s{service}\",\"ms\":{ms}.25,\"ts\":{ts}}}");
                rows.push((partition % partitions, json.into_bytes()));
            }
        }
    }
    let end = BEGIN_MS + (seconds + 2) * 1_000;
    rows.extend((0..partitions).map(|p| (p, format!("{{\"service\":\"end\",\"ms\":0,\"ts\":{end}}}").into_bytes())));
    rows
}

/// (service, window start) → (rows, sum), by brute force.
pub fn windows(rows: &[(i32, Vec<u8>)]) -> BTreeMap<(String, i64), (i64, f64)> {
    let mut windows: BTreeMap<(String, i64), (i64, f64)> = BTreeMap::new();
    for (_, row) in rows {
        let Ok(row) = serde_json::from_slice::<serde_json::Value>(row) else {
            continue;
        };
        let (Some(service), Some(ms), Some(ts)) = (row["service"].as_str(), row["ms"].as_f64(), row["ts"].as_i64())
        else {
            continue;
        };
        if service == "end" {
            continue;
        }
        let window = windows
            .entry((service.to_owned(), ts - ts.rem_euclid(10_000)))
            .or_default();
        window.0 += 1;
        window.1 += ms;
    }
    windows
}
