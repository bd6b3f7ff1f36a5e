//! Pipelines that are edited while they run: what is kept, what goes over, and that no window is lost or told twice.

use crate::world::{Plan, World};

/// A detector that learns, and everything that it says.
const LEARNING: &str = "
CREATE DETECTOR learned ON load KEY (service) FEATURES (total) USING robust_zscore WITH (warmup = 3);
CREATE SINK learned_scores FROM learned WITH (topic = 'learned_scores', format = 'json');
";

fn plan(disturbed: bool) -> Plan {
    Plan {
        crashes: disturbed,
        broker_faults: disturbed,
        ..Plan::default()
    }
}

/// One edit after another, with the fleet as quiet or as disturbed as it is.
fn edited(seed: u64, disturbed: bool, edits: &[(&str, &str)]) -> World {
    let mut world = World::versioned(seed, plan(disturbed), LEARNING);
    world.run_for(20_000);
    for (from, to) in edits {
        world.apply(LEARNING, from, to);
        if disturbed {
            world.storm(40_000);
        }
        world.run_for(30_000);
    }
    world
}

const WIDER: (&str, &str) = (
    "FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '5' SECOND)",
    "FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '15' SECOND)",
);
const OTHER_AGGREGATE: (&str, &str) = (
    "SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total\nFROM TUMBLE(TABLE app",
    "SELECT service, window_start, window_end, count(*) AS n, avg(ms) * count(*) AS total\nFROM TUMBLE(TABLE app",
);
const OTHER_DELAY: (&str, &str) = (
    "WATERMARK FOR ts AS ts - INTERVAL '1' SECOND",
    "WATERMARK FOR ts AS ts - INTERVAL '2' SECOND",
);
const OTHER_THRESHOLD: (&str, &str) = (
    "FEATURES (n, total) USING static_threshold WITH (upper = -1);\n\nCREATE DETECTOR quiet",
    "FEATURES (n, total) USING static_threshold WITH (upper = -2);\n\nCREATE DETECTOR quiet",
);

#[test]
fn a_threshold_edited_in_flight_loses_no_window_and_keeps_what_was_learned() {
    let scores = |edits: &[(&str, &str)]| {
        let mut world = edited(11, false, edits);
        if edits.is_empty() {
            world.run_for(30_000);
        }
        world.finish().unwrap();
        (world.sink("learned_scores"), world.windows("every").len())
    };
    let (unedited, windows) = scores(&[]);
    assert!(unedited.len() > 50, "{}", unedited.len());
    let (threshold, same_windows) = scores(&[OTHER_THRESHOLD]);
    assert_eq!(windows, same_windows);
    assert!(unedited == threshold, "scores of a detector that was not edited differ");
}

#[test]
fn an_edit_of_window_aggregate_or_source_switches_without_a_gap_or_a_double_row() {
    for edit in [WIDER, OTHER_AGGREGATE, OTHER_DELAY] {
        let mut world = edited(12, false, &[edit]);
        world.run_for(20_000);
        assert_eq!(world.settled(), 2, "the old version is over: {}", edit.1);
        world.end();
        world
            .rows_are_shared_out()
            .unwrap_or_else(|broken| panic!("{}: {broken}", edit.1));
        if edit == WIDER {
            let windows = world.windows("every");
            let of = |length_ms: i64| windows.iter().filter(|window| window.2 - window.1 == length_ms).count();
            assert!(
                of(5_000) > 20 && of(15_000) > 20,
                "both versions spoke: {} {}",
                of(5_000),
                of(15_000)
            );
        }
    }
}

#[test]
fn what_was_edited_is_brought_back() {
    let mut world = edited(13, false, &[WIDER, ("", "")]);
    world.run_for(20_000);
    assert_eq!(world.settled(), 3);
    world.end();
    world.rows_are_shared_out().unwrap();
}

#[test]
fn edits_are_exact_whatever_crashes_between() {
    for seed in 0..4 {
        let edits = [OTHER_THRESHOLD, WIDER, OTHER_AGGREGATE, OTHER_DELAY];
        let edits = [edits[seed as usize % 4], edits[(seed as usize + 1) % 4]];
        let mut world = edited(seed, true, &edits);
        world.end();
        let exact = world.rows_are_shared_out();
        exact.unwrap_or_else(|broken| panic!("seed {seed}, {edits:?}: {broken}"));
    }
}

/// A view whose windows are much longer than the time that an edit may take.
const LONG: &str = "
CREATE FEATURE VIEW long AS
SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total
FROM HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '60' SECOND)
GROUP BY service, window_start, window_end;
CREATE DETECTOR slow ON long KEY (service) FEATURES (n, total) USING static_threshold WITH (upper = -1);
";
const SHORTER: (&str, &str) = ("INTERVAL '60' SECOND", "INTERVAL '40' SECOND");
const LONGER: (&str, &str) = ("INTERVAL '60' SECOND", "INTERVAL '90' SECOND");
const APART: (&str, &str) = (
    "HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '60' SECOND)",
    "TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '20' SECOND)",
);
/// Another key, so that each lies in another partition of `panes` than it did.
const OTHER_KEY: (&str, &str) = (
    "SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total
FROM HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '60' SECOND)
GROUP BY service, window_start, window_end;",
    "SELECT upper(service) AS service, window_start, window_end, count(*) AS n, sum(ms) AS total
FROM HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '60' SECOND)
GROUP BY upper(service), window_start, window_end;",
);
const OTHER_SUM: (&str, &str) = (
    "count(*) AS n, sum(ms) AS total\nFROM HOP",
    "count(*) AS n, avg(ms) * count(*) AS total\nFROM HOP",
);

/// How far the ends of `long` are apart, by its windows' length.
fn slide_ms(length_ms: i64) -> i64 {
    if length_ms == 20_000 { length_ms } else { 5_000 }
}

#[test]
fn an_edited_view_is_whole_at_once_and_nobody_else_is_disturbed() {
    for edit in [SHORTER, LONGER, APART, OTHER_KEY, OTHER_SUM, OTHER_DELAY] {
        let mut world = World::versioned(21, plan(false), LONG);
        world.run_for(30_000);
        world.apply(LONG, edit.0, edit.1);
        world.run_for(15_000);
        assert_eq!(world.settled(), 2, "the old version is over: {}", edit.1);
        world.run_for(20_000);
        world.finish().unwrap_or_else(|broken| panic!("{}: {broken}", edit.1));
        let whole = world.every_end_has_its_window("slow", slide_ms);
        whole.unwrap_or_else(|broken| panic!("{}: {broken}", edit.1));
    }
}

#[test]
fn backfills_are_exact_whatever_crashes_between() {
    let edits = [SHORTER, APART, OTHER_KEY, OTHER_SUM, LONGER, OTHER_DELAY];
    for seed in 0..6 {
        let mut world = World::versioned(seed, plan(true), LONG);
        world.run_for(30_000);
        for after in [0, 1] {
            let edit = edits[(seed as usize + after) % edits.len()];
            world.apply(LONG, edit.0, edit.1);
            world.storm(20_000);
        }
        world.run_for(60_000);
        world.end();
        let exact = world.every_end_has_its_window("slow", slide_ms);
        exact.unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn where_retention_has_removed_the_past_the_old_version_speaks_until_the_new_one_is_whole() {
    let mut world = World::versioned(22, plan(false), LONG);
    world.run_for(40_000);
    world.retain("app", 120);
    world.apply(LONG, SHORTER.0, SHORTER.1);
    world.run_for(25_000);
    assert!(world.settled() < 2, "the new version has no whole window yet");
    world.run_for(30_000);
    assert_eq!(world.settled(), 2);
    world.finish().unwrap();
    world.every_end_has_its_window("slow", slide_ms).unwrap();
}
