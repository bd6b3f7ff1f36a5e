//! Rows beside a table in a topic, whose rows change while stages die.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::world::{Plan, World};

const TABLE: &str = "
CREATE TABLE teams (service STRING METADATA FROM 'key', team STRING, since TIMESTAMP(3),
  PRIMARY KEY (service) NOT ENFORCED, WATERMARK FOR since AS since)
WITH (connector = 'upsert-kafka', topic = 'teams', format = 'json');

CREATE VIEW owned AS
SELECT ts, t.team, ms FROM app LEFT JOIN teams FOR SYSTEM_TIME AS OF ts AS t ON app.service = t.service;

CREATE FEATURE VIEW by_team AS
SELECT team, window_start, count(*) AS n, sum(ms) AS total
FROM TUMBLE(TABLE owned, DESCRIPTOR(ts), INTERVAL '5' SECOND)
GROUP BY team, window_start;

CREATE SINK team_rows FROM by_team WITH (topic = 'team_rows', format = 'json');
";
const WINDOW_MS: i64 = 5_000;

/// By service, since when it is whose.
type Versions = BTreeMap<usize, Vec<(i64, String)>>;

fn own(world: &World, versions: &mut Versions, service: usize, team: &str, since_ms: i64) {
    let value = format!("{{\"team\":\"{team}\",\"since\":{since_ms}}}");
    world.write("teams", &format!("s{service}"), &value);
    versions.entry(service).or_default().push((since_ms, team.to_owned()));
}

#[test]
fn rows_are_joined_with_the_version_of_their_time_whatever_crashes_between() {
    for seed in 0..2 {
        let plan = Plan {
            crashes: true,
            broker_faults: true,
            ..Plan::default()
        };
        let mut world = World::versioned(seed, plan, TABLE);
        let mut versions = Versions::new();
        // The others have no team.
        for service in 0..5 {
            own(&world, &mut versions, service, "first", world.now_ms());
        }
        world.run_for(20_000);
        for round in 0..8 {
            // Known before its time comes, as what is said of the past would change only what is yet to be folded.
            let since_ms = world.now_ms() + 2_000;
            let service = (round + seed as usize) % 5;
            own(&world, &mut versions, service, &format!("team{}", round % 3), since_ms);
            world.storm(4_000);
        }
        world.run_for(20_000);
        world.end();
        let mut expected: BTreeMap<(String, i64), (u64, f64)> = BTreeMap::new();
        for (service, ts, ms) in world.rows() {
            let all = versions.get(service).map_or(&[][..], Vec::as_slice);
            // The first one holds before its time, too.
            let known = all.iter().rfind(|(since_ms, _)| since_ms <= ts).or(all.first());
            let team = known.map_or("null".to_owned(), |(_, team)| team.clone());
            let (n, total) = expected.entry((team, ts - ts.rem_euclid(WINDOW_MS))).or_default();
            (*n, *total) = (*n + 1, *total + ms);
        }
        let mut found = BTreeMap::new();
        for line in world.sink("team_rows") {
            let row: Value = serde_json::from_str(&line).unwrap();
            let team = row["team"].as_str().unwrap_or("null").to_owned();
            let start = protocol::time::from_rfc3339(row["window_start"].as_str().unwrap()).unwrap();
            let counted = (row["n"].as_u64().unwrap(), row["total"].as_f64().unwrap());
            assert!(
                found.insert((team, start), counted).is_none(),
                "seed {seed}: {line} twice"
            );
        }
        assert!(expected.keys().any(|(team, _)| team == "team2") && expected.keys().any(|(team, _)| team == "null"));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "seed {seed}"
        );
        for (key, (n, total)) in expected {
            let (found_n, found_total) = found[&key];
            assert_eq!(n, found_n, "seed {seed}: {key:?}");
            assert!(
                (total - found_total).abs() <= 1e-6 * total.abs().max(1.0),
                "seed {seed}: {key:?}"
            );
        }
    }
}
