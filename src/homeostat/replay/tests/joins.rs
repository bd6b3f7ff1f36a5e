//! Rows joined with tables, and views with views.

use super::*;

/// Rows by service and start of the window, NULL aside.
fn by_group(rows: &lines::Rows) -> BTreeMap<(String, String), serde_json::Value> {
    let parsed = shown(rows)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect::<Vec<serde_json::Value>>();
    let keyed = parsed.into_iter().filter(|row| !row["service"].is_null());
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
    keyed
        .map(|row| ((text(&row, "service"), text(&row, "window_start")), row))
        .collect()
}

/// Invariant 5: a join is exactly the join of the rows that its views have.
#[test]
fn joined_views_have_the_rows_that_their_views_have_together() {
    let folder = tempfile::tempdir().unwrap();
    let view = |name: &str, select: &str, filter: &str, having: &str| {
        format!(
            "CREATE FEATURE VIEW {name} AS SELECT service, window_start, {select}
             FROM HOP(app, ts, INTERVAL '5 s', INTERVAL '20 s') {filter} GROUP BY service, window_start {having};"
        )
    };
    let join = |name: &str, kind: &str, right: &str, filter: &str| {
        format!(
            "CREATE FEATURE VIEW {name} AS SELECT a.service, a.window_start, a.n, a.median_ms, r.service AS other, r.n AS rn, r.x, a.n + r.n AS both
             FROM a {kind} {right} AS r ON a.service = r.service AND a.window_start = r.window_start {filter};"
        )
    };
    let text = [
        APP.to_owned(),
        view("a", "count(*) AS n, median(ms) AS median_ms", "WHERE code < 4", ""),
        view("b", "count(*) AS n, last(ms) AS x", "WHERE ok", "HAVING avg(ms) > 3"),
        view("c", "count(code) AS n, stddev(ms) AS x", "", "HAVING count(*) > 3"),
        view(
            "d",
            "sum(code) AS n, max(ms) FILTER (WHERE ok) AS x",
            "WHERE code < 4",
            "HAVING max(ms) > 5",
        ),
        join("inner_b", "JOIN", "b", ""),
        join("inner_c", "JOIN", "c", ""),
        join("inner_d", "INNER JOIN", "d", ""),
        join("left_b", "LEFT JOIN", "b", ""),
        join("left_c", "LEFT OUTER JOIN", "c", ""),
        join("left_d", "LEFT JOIN", "d", ""),
        join("alone", "LEFT JOIN", "b", "WHERE r.service IS NULL"),
        "CREATE FEATURE VIEW few AS SELECT service, window_start, n FROM a WHERE n < 3;".to_owned(),
        // Views over views over views, in no order.
        "CREATE FEATURE VIEW deepest AS SELECT service, window_start, n + more AS n FROM deep WHERE more > 2;
         CREATE FEATURE VIEW deep AS SELECT l.service, l.window_start, coalesce(l.rn, 0) + i.n AS n, i.rn + c.n AS more
         FROM left_b AS l JOIN inner_c AS i ON l.service = i.service AND l.window_start = i.window_start
         LEFT JOIN c ON c.service = l.service AND c.window_start = l.window_start WHERE i.n > 1;"
            .to_owned(),
    ]
    .concat();
    let mut seed = 7u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut csv = "ts,service,ms,code,ok\n".to_owned();
    for _ in 0..600 {
        let service = ["", "a", "b", "c", "d"][random(5) as usize];
        let ok = ["", "true", "false"][random(3) as usize];
        csv += &format!(
            "{},{service},{},{},{ok}\n",
            random(600_000),
            random(80) as f64 / 8.0,
            random(6)
        );
    }
    let path = write(folder.path(), "app.csv", &csv);
    let pipeline = compile(&text);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let rows = |name: &str| by_group(replayed.views.iter().find(|rows| rows.name == name).unwrap());
    let left = rows("a");
    for right in ["b", "c", "d"] {
        let partners = rows(right);
        let inner = rows(&format!("inner_{right}"));
        let outer = rows(&format!("left_{right}"));
        assert_eq!(outer.keys().collect::<Vec<_>>(), left.keys().collect::<Vec<_>>());
        let shared: Vec<_> = left.keys().filter(|group| partners.contains_key(*group)).collect();
        assert_eq!(inner.keys().collect::<Vec<_>>(), shared);
        assert!(
            shared.len() > 20 && shared.len() < left.len(),
            "{right}: {} of {}",
            shared.len(),
            left.len()
        );
        for (group, row) in &outer {
            let own = &left[group];
            let null = serde_json::Value::Null;
            let partner = |name: &str| partners.get(group).map_or(&null, |row| &row[name]);
            let both = partner("n").as_i64().map(|n| n + own["n"].as_i64().unwrap());
            let expected = serde_json::json!({
                "service": own["service"], "window_start": own["window_start"], "n": own["n"], "median_ms": own["median_ms"],
                "other": partner("service"), "rn": partner("n"), "x": partner("x"), "both": both,
            });
            assert_eq!(*row, expected, "{right} {group:?}");
            assert!(inner.get(group).is_none_or(|inner| inner == row));
        }
    }
    let partners = rows("b");
    let alone: Vec<_> = left.keys().filter(|group| !partners.contains_key(*group)).collect();
    assert_eq!(rows("alone").keys().collect::<Vec<_>>(), alone);
    let few: Vec<_> = left
        .iter()
        .filter(|(_, row)| row["n"].as_i64() < Some(3))
        .map(|(group, _)| group)
        .collect();
    assert_eq!(rows("few").keys().collect::<Vec<_>>(), few);
    let (left_b, inner_c, c) = (rows("left_b"), rows("inner_c"), rows("c"));
    let deep = left_b.iter().filter_map(|(group, left)| {
        let inner = inner_c.get(group).filter(|inner| inner["n"].as_i64() > Some(1))?;
        let n = left["rn"].as_i64().unwrap_or(0) + inner["n"].as_i64()?;
        Some((group, (n, inner["rn"].as_i64()? + c[group]["n"].as_i64()?)))
    });
    let deep: BTreeMap<_, _> = deep.collect();
    assert!(deep.len() > 20, "{}", deep.len());
    let found = rows("deep");
    let number = |row: &serde_json::Value, name: &str| row[name].as_i64().unwrap();
    let found: BTreeMap<_, _> = found
        .iter()
        .map(|(group, row)| (group, (number(row, "n"), number(row, "more"))))
        .collect();
    assert_eq!(found, deep);
    let found = rows("deepest");
    let found: Vec<_> = found.iter().map(|(group, row)| (group, number(row, "n"))).collect();
    let deepest = deep.iter().filter(|(_, (_, more))| *more > 2);
    assert_eq!(
        found,
        deepest.map(|(group, (n, more))| (*group, n + more)).collect::<Vec<_>>()
    );
    assert_eq!(run(&pipeline, &[path], 7).0, replayed);
}

#[test]
fn rows_are_joined_with_a_table_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "owners.csv", "service,team\na,one\nb,two\n");
    let text = format!(
        "{APP}
        CREATE TABLE owners (service STRING, team STRING, PRIMARY KEY (service)) WITH (connector = 'file', path = 'owners.csv', format = 'csv');
        CREATE FEATURE VIEW inner_rows AS SELECT team, window_end, count(*) AS n, max(ms) AS m FROM TUMBLE(
          TABLE (SELECT ts, o.team, ms FROM app JOIN owners FOR SYSTEM_TIME AS OF app.ts AS o ON app.service = o.service),
          DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY team, window_end;
        CREATE FEATURE VIEW all_rows AS SELECT team, window_end, count(*) AS n FROM TUMBLE(
          TABLE (SELECT ts, team FROM app LEFT JOIN owners FOR SYSTEM_TIME AS OF ts ON app.service = owners.service),
          DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY team, window_end;"
    );
    let read = || crate::pipelines::read(&write(folder.path(), "pipeline.sql", &text)).unwrap();
    let file = read();
    let pipeline = crate::pipelines::compile(&file).unwrap_or_else(|found| panic!("{}", file.render(&found, false)));
    let rows = [("a", 1), ("b", 2), ("a", 3), ("c", 4)]
        .map(|(service, ms)| format!("{{\"ts\":176722560000{ms},\"service\":\"{service}\",\"ms\":{ms}}}"));
    let rows = format!("{}\n{{\"ts\":1767225600009,\"ms\":9}}\n", rows.join("\n"));
    let path = write(folder.path(), "app.jsonl", &rows);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let end = "\"window_end\":\"2026-01-01T00:00:10.000Z\"";
    let expected =
        format!("{{\"team\":\"one\",{end},\"n\":2,\"m\":3.0}}\n{{\"team\":\"two\",{end},\"n\":1,\"m\":2.0}}\n");
    assert_eq!(shown(&replayed.views[0]), expected);
    let expected = format!(
        "{{\"team\":null,{end},\"n\":2}}\n{{\"team\":\"one\",{end},\"n\":2}}\n{{\"team\":\"two\",{end},\"n\":1}}\n"
    );
    assert_eq!(shown(&replayed.views[1]), expected);
    assert_eq!(run(&pipeline, std::slice::from_ref(&path), 5).0, replayed);
    // Another file is another view: panes of one are not merged with panes of the other.
    write(folder.path(), "owners.csv", "service,team\na,three\n");
    let edited = crate::pipelines::compile(&read()).unwrap();
    assert_ne!(edited.pane_sets[0].fingerprint, pipeline.pane_sets[0].fingerprint);
}

#[test]
fn rows_are_joined_with_the_version_of_a_table_at_their_time() {
    // The key of the record is told in a file by the column's name.
    for key in ["STRING", "STRING METADATA FROM 'key'"] {
        a_table_keyed_by(key);
    }
}

fn a_table_keyed_by(key: &str) {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(&format!(
        "{APP}
        CREATE TABLE owners (service {key}, team STRING, since TIMESTAMP(3), PRIMARY KEY (service), WATERMARK FOR since AS since)
        WITH (topic = 'owners', format = 'json');
        CREATE VIEW owned AS SELECT ts, o.team, ms FROM app LEFT JOIN owners FOR SYSTEM_TIME AS OF ts AS o ON app.service = o.service;
        CREATE FEATURE VIEW v AS SELECT team, window_end, count(*) AS n FROM TUMBLE(TABLE owned, DESCRIPTOR(ts), INTERVAL '10' SECOND)
        GROUP BY team, window_end;"
    ));
    let rows = [("a", 1), ("a", 3), ("a", 5), ("b", 5), ("c", 5)]
        .map(|(service, ms)| format!("{{\"ts\":176722560000{ms},\"service\":\"{service}\",\"ms\":{ms}}}\n"));
    let rows = write(folder.path(), "app.jsonl", &rows.concat());
    let owners = "service,team,since\na,red,1767225600002\na,blue,1767225600004\nb,red,\n";
    let tables = engine::table::tables(&pipeline);
    let replayed = |name: &str, owners: &str, partitions: i32| {
        let owners = Input::read_table(&tables[0], &[write(folder.path(), name, owners)])?;
        let app = Input::read(&pipeline.sources[0], std::slice::from_ref(&rows))?;
        replay(&pipeline, vec![Some(app), Some(owners)], partitions)
    };
    let (found, _) = replayed("owners.csv", owners, 1).unwrap();
    let end = "\"window_end\":\"2026-01-01T00:00:10.000Z\"";
    let expected = format!(
        "{{\"team\":null,{end},\"n\":1}}\n{{\"team\":\"blue\",{end},\"n\":1}}\n{{\"team\":\"red\",{end},\"n\":3}}\n"
    );
    assert_eq!(shown(&found.views[0]), expected);
    assert_eq!(replayed("owners.csv", owners, 3).unwrap().0, found);
    let lines = [
        "{\"service\":\"a\",\"team\":\"red\",\"since\":1767225600002}",
        "{\"service\":\"a\",\"team\":\"blue\",\"since\":1767225600004}",
        "{\"service\":\"b\",\"team\":\"red\"}",
    ]
    .join("\n");
    assert_eq!(replayed("owners.jsonl", &lines, 1).unwrap().0, found);
    let wrong = replayed("owners.jsonl", "{\"service\":\"a\"}\n{\"team\":\"red\"}", 1).unwrap_err();
    assert!(
        wrong
            .to_string()
            .contains("owners.jsonl:2: no row of table owners: its key is NULL"),
        "{wrong}"
    );
    let app = Input::read(&pipeline.sources[0], std::slice::from_ref(&rows)).unwrap();
    let missing = replay(&pipeline, vec![Some(app)], 1).unwrap_err();
    assert!(missing.to_string().contains("table owners has no file"), "{missing}");
}

/// Invariant 5: views of different sources are joined as their rows would be, whatever their keys are called.
#[test]
fn views_of_different_sources_are_joined_as_their_rows_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let window = |table: &str, ts: &str| format!("FROM TUMBLE({table}, {ts}, INTERVAL '10' SECOND)");
    let text = [
        APP.to_owned(),
        "CREATE SOURCE jobs (zone STRING, job STRING, took DOUBLE, tags STRING, at TIMESTAMP(3), WATERMARK FOR at AS at - INTERVAL '3' SECOND)
         WITH (topic = 'jobs', format = 'json');
         CREATE SOURCE pings (host STRING, t TIMESTAMP(3), WATERMARK FOR t AS t - INTERVAL '1' SECOND) WITH (topic = 'pings', format = 'json');
         CREATE VIEW both AS SELECT t, host FROM pings UNION ALL SELECT at, job FROM jobs WHERE took > 5;"
            .to_owned(),
        format!(
            "CREATE FEATURE VIEW a AS SELECT service, code % 2 AS odd, window_start, count(*) AS n, rate(ms) AS r {} WHERE ms > 1
             GROUP BY service, code % 2, window_start;",
            window("app", "ts")
        ),
        format!(
            "CREATE FEATURE VIEW b AS SELECT job, CAST(took AS BIGINT) % 2 AS kind, window_start AS begun, max(took) AS worst,
             count(*) FILTER (WHERE tags = 'x') AS xs {} GROUP BY job, CAST(took AS BIGINT) % 2, window_start HAVING count(*) > 1;",
            window("jobs", "at")
        ),
        format!(
            "CREATE FEATURE VIEW per_service AS SELECT service, window_start, count(*) AS n {} GROUP BY service, window_start;",
            window("app", "ts")
        ),
        format!(
            "CREATE FEATURE VIEW seen AS SELECT host, window_start, count(*) AS pings {} GROUP BY host, window_start;",
            window("both", "t")
        ),
        "CREATE FEATURE VIEW two AS SELECT a.service, odd, a.window_start, n, r, worst, xs
         FROM a JOIN b ON b.job = a.service AND a.odd = b.kind AND a.window_start = b.begun WHERE worst > 2;
         CREATE FEATURE VIEW three AS SELECT p.service, p.window_start, p.n, s.pings
         FROM per_service AS p LEFT JOIN seen AS s ON p.service = s.host AND p.window_start = s.window_start;
         CREATE FEATURE VIEW deep AS SELECT service, window_start, pings FROM three WHERE pings IS NOT NULL;"
            .to_owned(),
    ]
    .concat();
    let mut seed = 11u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let names = ["", "a", "b", "c", "d"];
    let mut files = [
        "ts,service,ms,code,ok\n".to_owned(),
        "at,zone,job,took,tags\n".to_owned(),
        "t,host\n".to_owned(),
    ];
    for _ in 0..300 {
        let mut name = || names[random(5) as usize];
        let of = [name(), name(), name()];
        files[0] += &format!(
            "{},{},{},{},\n",
            random(90_000),
            of[0],
            random(40) as f64 / 4.0,
            random(6)
        );
        files[1] += &format!(
            "{},z,{},{},{}\n",
            random(90_000),
            of[1],
            random(10),
            ["x", ""][random(2) as usize]
        );
        files[2] += &format!("{},{}\n", random(90_000), of[2]);
    }
    let pipeline = compile(&text);
    let named = ["app", "jobs", "pings"].into_iter().zip(&files);
    let paths: BTreeMap<&str, PathBuf> = named
        .map(|(name, text)| (name, write(folder.path(), &format!("{name}.csv"), text)))
        .collect();
    let replayed = |partitions: i32| {
        let inputs = pipeline.sources.iter().map(|source| {
            let path = std::slice::from_ref(&paths[source.name.as_str()]);
            Some(Input::read(source, path).unwrap())
        });
        replay(&pipeline, inputs.collect(), partitions).unwrap().0
    };
    let found = replayed(1);
    let rows = |name: &str| -> Vec<serde_json::Value> {
        let rows = found.views.iter().find(|rows| rows.name == name).unwrap();
        shown(rows)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    let text = |rows: Vec<serde_json::Value>| sorted(rows.iter().map(ToString::to_string).collect());
    let mut two = Vec::new();
    for a in rows("a") {
        for b in rows("b") {
            let equal =
                !a["service"].is_null() && a["service"] == b["job"] && !a["odd"].is_null() && a["odd"] == b["kind"];
            if equal && a["window_start"] == b["begun"] && b["worst"].as_f64() > Some(2.0) {
                two.push(serde_json::json!({
                    "service": a["service"], "odd": a["odd"], "window_start": a["window_start"], "n": a["n"], "r": a["r"],
                    "worst": b["worst"], "xs": b["xs"],
                }));
            }
        }
    }
    assert!(two.len() > 10, "{}", two.len());
    assert_eq!(text(rows("two")), text(two));
    let seen = rows("seen");
    let three = rows("per_service").into_iter().map(|p| {
        let partner = |s: &&serde_json::Value| {
            !p["service"].is_null() && s["host"] == p["service"] && s["window_start"] == p["window_start"]
        };
        let pings = seen
            .iter()
            .find(partner)
            .map_or(serde_json::Value::Null, |s| s["pings"].clone());
        serde_json::json!({"service": p["service"], "window_start": p["window_start"], "n": p["n"], "pings": pings})
    });
    let three: Vec<_> = three.collect();
    let deep = three.iter().filter(|row| !row["pings"].is_null()).count();
    assert!(deep > 10 && deep < three.len(), "{deep} of {}", three.len());
    assert_eq!(text(rows("three")), text(three));
    assert_eq!(rows("deep").len(), deep);
    assert_eq!(replayed(4), found);
}
