//! Invariants 1, 5, 6, 7, 8, 9, 11 and 17, on the aggregate stage alone.

mod harness;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    datatypes::{DataType, Int64Type, Schema},
    util::display::array_value_to_string,
};
use datafusion::{
    logical_expr::Operator,
    physical_expr::expressions::{binary, cast, col, lit},
};
use proptest::prelude::*;
use protocol::{Stage, log::SourceProgress};

use super::Options;
use crate::{
    assemble::{Assembler, ClosedWindow},
    panes::read_panes,
    spec::{Beyond, Budget, Format, PaneSetSpec, Pipeline, StateLimit},
};
use harness::*;

/// What a run does between records.
#[derive(Clone, Debug)]
enum Act {
    Step { partitions: Vec<usize>, count: usize },
    Tick(i64),
    Commit,
    Crash,
}

fn act(partitions: usize) -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (proptest::sample::subsequence((0..partitions).collect::<Vec<_>>(), 1..=partitions), 1_usize..8)
            .prop_map(|(partitions, count)| Act::Step { partitions, count }),
        1 => (0_i64..200).prop_map(Act::Tick),
        2 => Just(Act::Commit),
        1 => Just(Act::Crash),
    ]
}

fn perform(harness: &mut Harness, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Step { partitions, count } => harness.step(partitions, *count),
            Act::Tick(elapsed_ms) => harness.tick(*elapsed_ms),
            Act::Commit => harness.commit(),
            Act::Crash => harness.crash(),
        }
    }
}

/// Advance in ms, rows of (jitter in ms, service, value, fate), fate of the record.
type Drawn = (i64, Vec<(i64, String, f64, u8)>, u8);

/// Rows advance by up to 900 ms and jump back by up to 8 s; some records are poison, some rows have no time or a mad one.
fn log(partitions: usize) -> impl Strategy<Value = Vec<Vec<Entry>>> {
    let jitter = prop_oneof![6 => -600_i64..0, 1 => -8_000_i64..0];
    let one = (jitter, "[a-d]", 0.0..20.0_f64, 0_u8..40);
    let record = (0_i64..900, proptest::collection::vec(one, 1..4), 0_u8..20);
    let partition = proptest::collection::vec(record, 0..60);
    proptest::collection::vec(partition, partitions).prop_map(|partitions| {
        let entries = |records: Vec<Drawn>| {
            let mut now = 100_000;
            let mut entries = Vec::new();
            for (step, rows, fate) in records {
                now += step;
                let rows = rows.into_iter().map(|(jitter, service, value, fate)| Row {
                    ts: match fate {
                        0 => None,
                        1 => Some(4_102_444_800_000),
                        _ => Some(now + jitter),
                    },
                    service,
                    value,
                });
                entries.push(Entry {
                    timestamp_ms: now,
                    rows: rows.collect(),
                    poison: fate == 0,
                });
            }
            // Seals everything.
            entries.push(entry(vec![row(now + 1_000_000, "z", 0.0)]));
            entries.push(entry(vec![row(now + 2_000_000, "z", 0.0)]));
            entries
        };
        partitions.into_iter().map(entries).collect()
    })
}

fn finish(harness: &mut Harness) {
    harness.drain(5);
    harness.tick(10);
    harness.commit();
}

/// Every published row without what depends on where commits fell, sorted.
fn contents(harness: &Harness) -> Vec<String> {
    let mut rows = Vec::new();
    for (target, header, batch) in harness.panes() {
        for row in 0..batch.num_rows() {
            let cells = batch.columns().iter().map(|column| {
                match column.as_any().downcast_ref::<arrow::array::Float64Array>() {
                    Some(floats) if floats.is_valid(row) => format!("{:016x}", floats.value(row).to_bits()),
                    _ => array_value_to_string(column, row).unwrap(),
                }
            });
            let cells = cells.collect::<Vec<_>>().join(",");
            rows.push(format!("{target} {} {} {cells}", header.set, header.source_partition));
        }
    }
    rows.sort();
    rows
}

fn check(harness: &Harness, sets: &[PaneSetSpec]) {
    let mut late = 0;
    for set in sets {
        for window in &set.windows {
            let expected = expected(&harness.log, set, window);
            assert_windows(&harness.windows(set, window), &expected.windows, &window.view);
            late += expected.late;
        }
    }
    assert_eq!(harness.on("t.late").len(), late, "late rows");
    let dead = expected(&harness.log, &sets[0], &sets[0].windows[0]).dead;
    assert_eq!(harness.on("t.dead_letters").len(), dead, "dead letters");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn windows_are_exact_for_any_batches_commits_and_crashes(
        log in log(3),
        acts in proptest::collection::vec(act(3), 0..60),
    ) {
        let sets = vec![by_service(), large()];
        let mut harness = Harness::new(vec![pipeline(sets.clone())], log.clone());
        perform(&mut harness, &acts);
        finish(&mut harness);
        check(&harness, &sets);
        // And bit for bit what a run without a crash publishes.
        let mut plain = Harness::new(vec![pipeline(sets.clone())], log);
        finish(&mut plain);
        prop_assert_eq!(contents(&harness), contents(&plain));
    }

    /// Too many keys are published early: windows hold what they would have held, crash or no crash.
    #[test]
    fn what_is_evicted_is_in_its_window_all_the_same(
        log in log(3),
        acts in proptest::collection::vec(act(3), 0..60),
        budget in prop_oneof![(1..4_u32).prop_map(Budget::Keys), (60..400_u64).prop_map(Budget::Bytes)],
    ) {
        let limited = || {
            let mut set = by_service();
            set.state_limit = Some(StateLimit { budget, beyond: Beyond::Evict });
            vec![set, large()]
        };
        let mut harness = Harness::new(vec![pipeline(limited())], log.clone());
        perform(&mut harness, &acts);
        finish(&mut harness);
        check(&harness, &limited());
        let mut plain = Harness::new(vec![pipeline(limited())], log.clone());
        finish(&mut plain);
        prop_assert_eq!(contents(&harness), contents(&plain));
        prop_assert!(harness.on("t.dead_letters").len() == plain.on("t.dead_letters").len());
    }

    #[test]
    fn idle_verdicts_do_not_change_what_windows_hold(
        log in log(2),
        acts in proptest::collection::vec(prop_oneof![
            4 => act(2),
            1 => Just(Act::Tick(40_000)),
        ], 0..60),
        hidden in proptest::collection::vec(0_usize..40, 2),
    ) {
        let sets = vec![by_service(), large()];
        let mut harness = Harness::new(vec![pipeline(sets.clone())], log.clone());
        // Part of the log comes only after the partitions fell idle.
        for (partition, hidden) in hidden.iter().enumerate() {
            let keep = log[partition].len().saturating_sub(*hidden).max(1);
            harness.log[partition].truncate(keep);
        }
        perform(&mut harness, &acts);
        harness.log = log;
        finish(&mut harness);
        check(&harness, &sets);
    }
}

/// What detect makes of what several instances say, each owning one partition, their records interleaved at will.
fn assemble(pipeline: &Pipeline, instances: &[Harness], mut order: impl Iterator<Item = usize>) -> Vec<ClosedWindow> {
    let mut closed = Vec::new();
    for target in 0..options().panes_partitions {
        let mut assembler = Assembler::new(std::slice::from_ref(pipeline)).unwrap();
        let here = |harness: &Harness| {
            let outputs = harness
                .on("t.panes")
                .into_iter()
                .filter(|output| output.partition == Some(target));
            outputs.cloned().collect::<std::collections::VecDeque<_>>()
        };
        let mut writers: Vec<_> = instances.iter().map(here).collect();
        let mut offset = 0;
        while writers.iter().any(|writer| !writer.is_empty()) {
            let next = order.next().unwrap_or(0) % writers.len();
            let Some(output) = writers[next].pop_front() else {
                continue;
            };
            offset += 1;
            let value = output.value.as_ref().unwrap();
            let assembled = match header(&output, "kind") {
                Some("panes") => {
                    let read = serde_json::from_str(header(&output, "pane").unwrap()).unwrap();
                    assembler.panes(offset, &read, &read_panes(value).unwrap()).unwrap()
                }
                _ => assembler.progress(&serde_json::from_slice(value).unwrap()).unwrap(),
            };
            assert!(assembled.late.is_empty() && !assembled.stale && !assembled.unknown);
            closed.extend(assembled.closed);
        }
    }
    closed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn detect_assembles_exact_windows_from_many_instances(
        log in log(3),
        acts in proptest::collection::vec(proptest::collection::vec(act(3), 0..30), 3),
        order in proptest::collection::vec(0_usize..3, 1..50),
    ) {
        let sets = vec![by_service(), large()];
        let pipeline = pipeline(sets.clone());
        let mut instances = Vec::new();
        for (partition, acts) in acts.iter().enumerate() {
            let mut harness = Harness::owning(vec![pipeline.clone()], log.clone(), options(), vec![partition]);
            perform(&mut harness, acts);
            finish(&mut harness);
            instances.push(harness);
        }
        let order = order.iter().copied().cycle().chain(0..3);
        // A cycle of one writer alone would wait for the others for ever.
        let order = order.enumerate().map(|(turn, writer)| if turn % 4 == 3 { turn / 4 } else { writer });
        let closed = assemble(&pipeline, &instances, order);
        for (index, view) in pipeline.views.iter().enumerate() {
            let found = closed_windows(&closed, index, sets[view.pane_sets[0]].keys.len());
            let expected = expected(&log, &sets[view.pane_sets[0]], &view.window);
            assert_windows(&found, &expected.windows, &view.name);
        }
    }
}

fn closed_windows(closed: &[ClosedWindow], view: usize, keys: usize) -> Windows {
    let mut windows = Windows::new();
    for window in closed.iter().filter(|window| window.view == view) {
        for row in 0..window.rows.num_rows() {
            let cell = |column: usize| array_value_to_string(window.rows.column(column), row).unwrap();
            let key = if keys == 0 { String::new() } else { cell(0) };
            if key == CLOSING {
                continue;
            }
            let value = (cell(keys + 2).parse().unwrap(), cell(keys + 3).parse().unwrap());
            let before = windows.insert((window.end_ms, key), value);
            assert!(before.is_none(), "a window closes once");
        }
    }
    windows
}

#[test]
fn every_commit_boundary_survives_a_crash() {
    let entries = |seed: i64| -> Vec<Entry> {
        let at = |index: i64| 100_000 + index * 230 + (index * seed * 37) % 1_700 - 800;
        let mut entries: Vec<Entry> = (0..80)
            .map(|index| {
                entry(vec![row(
                    at(index),
                    ["a", "b", "c"][index as usize % 3],
                    index as f64 / 3.0,
                )])
            })
            .collect();
        entries.push(entry(vec![row(500_000, "z", 0.0)]));
        entries.push(entry(vec![row(600_000, "z", 0.0)]));
        entries
    };
    let log = vec![entries(5), entries(11)];
    let sets = vec![by_service(), large()];
    for boundary in 0..82 {
        let mut harness = Harness::new(vec![pipeline(sets.clone())], log.clone());
        harness.step(&[0, 1], boundary);
        harness.commit();
        harness.step(&[0, 1], 7);
        harness.crash();
        // A commit in the middle of the replay says what the last one said.
        harness.step(&[0], 1);
        harness.commit();
        harness.crash();
        finish(&mut harness);
        check(&harness, &sets);
    }
}

#[test]
fn the_year_2100_moves_nothing() {
    let mut log = vec![
        entry(vec![row(10_000, "a", 1.0)]),
        entry(vec![row(10_100, "a", 1.0), row(10_200, "a", 2.0)]),
        entry(vec![row(10_300, "a", 3.0)]),
        entry(vec![row(90_000, "z", 0.0)]),
    ];
    log[1].rows[0].ts = Some(4_102_444_800_000);
    let sets = vec![by_service(), large()];
    let mut harness = Harness::new(vec![pipeline(sets.clone())], vec![log]);
    finish(&mut harness);
    check(&harness, &sets);
    let dead = harness.on("t.dead_letters");
    assert_eq!(header(dead[0], "source_offset"), Some("1"));
    assert_eq!(header(dead[0], "source_topic"), Some(TOPIC));
    let reason = header(dead[0], "reason").unwrap();
    assert!(reason.contains("ahead of the record's timestamp"), "{reason}");
    assert_eq!(dead[0].value.as_ref().unwrap().len(), 16, "as many bytes as are kept");
    assert_eq!(header(dead[0], "sha256").unwrap().len(), 64);
    assert_eq!(dead[0].key.as_deref(), Some(&b"k"[..]), "keyed as the source");
}

fn last(harness: &Harness) -> SourceProgress {
    harness.progress().pop().unwrap()
}

#[test]
fn idle_flushes_once_and_the_partition_returns() {
    let first = vec![entry(vec![row(10_000, "a", 1.0)]), entry(vec![row(10_400, "a", 2.0)])];
    let then = vec![entry(vec![row(10_500, "a", 4.0)]), entry(vec![row(90_000, "z", 0.0)])];
    let sets = vec![by_service()];
    let mut harness = Harness::new(vec![pipeline(sets.clone())], vec![first.clone()]);
    harness.step(&[0], 9);
    harness.commit();
    assert!(harness.panes().is_empty());
    harness.tick(1_000);
    harness.tick(29_999);
    harness.commit();
    assert!(!last(&harness).partitions[0].idle, "quiet, but not for long enough");
    harness.tick(1);
    assert!(harness.panes().is_empty(), "the verdict acts only with its commit");
    harness.commit();
    assert!(last(&harness).partitions[0].idle);
    assert_eq!(harness.panes().len(), 1);
    let metadata = &harness.committed[&0].metadata;
    assert!(
        metadata.contains(":2:"),
        "low-water is the committed offset: {metadata}"
    );
    // What was flushed is not folded again.
    harness.crash();
    assert_eq!(harness.positions[0], 2);
    harness.tick(10);
    harness.commit();
    assert!(last(&harness).partitions[0].idle, "idleness survives");
    harness.log[0].extend(then);
    harness.step(&[0], 1);
    harness.commit();
    assert!(!last(&harness).partitions[0].idle);
    finish(&mut harness);
    check(&harness, &sets);
    // The pane came in two partials.
    let partials = harness
        .panes()
        .iter()
        .filter(|(_, _, rows)| rows.column(0).len() == 1)
        .count();
    assert!(partials >= 2);
}

#[test]
fn a_record_between_verdict_and_commit_withdraws_the_verdict() {
    let mut harness = Harness::new(
        vec![pipeline(vec![by_service()])],
        vec![vec![entry(vec![row(10_000, "a", 1.0)])]],
    );
    harness.step(&[0], 1);
    harness.tick(0);
    harness.tick(60_000);
    assert!(harness.stage.urgent());
    harness.log[0].push(entry(vec![row(10_100, "a", 1.0)]));
    harness.step(&[0], 1);
    harness.commit();
    assert!(!last(&harness).partitions[0].idle);
    assert!(harness.panes().is_empty());
}

#[test]
fn a_partition_that_is_behind_is_not_idle() {
    let log = (0..100).map(|at| entry(vec![row(10_000 + at, "a", 1.0)])).collect();
    let mut harness = Harness::new(vec![pipeline(vec![by_service()])], vec![log]);
    harness.step(&[0], 1);
    harness.tick(100_000);
    harness.tick(100_000);
    harness.commit();
    assert!(!last(&harness).partitions[0].idle);
}

#[test]
fn late_rows_are_judged_per_view() {
    // At watermark 14_300 the hop windows over 10_500 (the last ends at 13_000) are closed; `patient`, whose last ends at
    // 14_000 + 3_000, still takes it.
    let log = vec![
        entry(vec![row(15_000, "a", 1.0)]),
        entry(vec![row(10_500, "a", 2.0)]),
        entry(vec![row(2_000, "a", 4.0)]),
        entry(vec![row(90_000, "z", 0.0)]),
    ];
    let sets = vec![by_service()];
    let mut harness = Harness::new(vec![pipeline(sets.clone())], vec![log]);
    finish(&mut harness);
    check(&harness, &sets);
    let views: Vec<_> = harness
        .on("t.late")
        .iter()
        .map(|late| {
            let data: serde_json::Value = serde_json::from_slice(late.value.as_ref().unwrap()).unwrap();
            (
                data["view"].as_str().unwrap().to_owned(),
                data["offset"].as_i64().unwrap(),
                data["columns"]["value"].as_f64(),
            )
        })
        .collect();
    assert_eq!(
        views,
        [
            ("test.hop".to_owned(), 1, Some(2.0)),
            ("test.hop".to_owned(), 2, Some(4.0)),
            ("test.patient".to_owned(), 2, Some(4.0)),
        ]
    );
}

#[test]
fn a_delta_waits_for_the_next_seal_and_survives_a_crash() {
    let log = vec![
        entry(vec![row(10_000, "a", 1.0)]),
        entry(vec![row(12_000, "a", 2.0)]),
        // The pane at 10_000 is sealed; a window over it is open.
        entry(vec![row(10_100, "a", 4.0)]),
        entry(vec![row(12_100, "a", 8.0)]),
    ];
    let sets = vec![by_service()];
    let mut harness = Harness::new(vec![pipeline(sets.clone())], vec![log]);
    harness.step(&[0], 4);
    harness.commit();
    let sealed = harness.panes();
    assert_eq!(sealed.len(), 1, "the delta is not out yet");
    harness.crash();
    assert_eq!(harness.positions[0], 1, "the pane at 12_000 begins at offset 1");
    harness.log[0].push(entry(vec![row(90_000, "z", 0.0)]));
    finish(&mut harness);
    check(&harness, &sets);
    let deltas = harness
        .panes()
        .into_iter()
        .filter(|(_, header, _)| header.watermark_ms == 11_000);
    assert_eq!(deltas.count(), 1, "deltas carry the watermark they were judged by");
}

#[test]
fn poison_never_stops_a_partition() {
    let mut poison = entry(vec![]);
    poison.poison = true;
    let log = vec![
        entry(vec![row(10_000, "a", 1.0)]),
        poison,
        entry(vec![
            Row {
                ts: None,
                service: "a".into(),
                value: 1.0,
            },
            row(10_200, "a", 2.0),
        ]),
        entry(vec![row(90_000, "z", 0.0)]),
    ];
    let sets = vec![by_service(), large()];
    let mut harness = Harness::new(vec![pipeline(sets.clone())], vec![log]);
    finish(&mut harness);
    check(&harness, &sets);
    assert_eq!(harness.on("t.dead_letters").len(), 2);
}

#[test]
fn keys_beyond_the_limit_are_dead_letters() {
    let log = (0..10).map(|at| entry(vec![row(10_000 + at, &format!("s{at}"), 1.0)]));
    let log: Vec<Entry> = log.chain([entry(vec![row(90_000, "s0", 0.0)])]).collect();
    let limited = Options {
        keys_max: 4,
        ..options()
    };
    let mut harness = Harness::with(vec![pipeline(vec![by_service()])], vec![log], limited);
    finish(&mut harness);
    assert_eq!(harness.on("t.dead_letters").len(), 6);
    let mut counted = BTreeMap::new();
    harness.stage.observe(&mut |name, labels, value| {
        let labels: Vec<_> = labels.iter().map(|(_, value)| *value).collect();
        counted.insert(format!("{name} {}", labels.join(" ")), value);
    });
    assert_eq!(counted["dead_letters_total test.metrics key_limit"], 6.0);
    assert_eq!(counted["rows_total "], 11.0);
}

#[test]
fn a_view_says_itself_how_many_keys_it_takes_and_whether_more_stop_it() {
    let log: Vec<Entry> = (0..10)
        .map(|at| entry(vec![row(10_000 + at, &format!("s{at}"), 1.0)]))
        .collect();
    let limited = |beyond| {
        let mut set = by_service();
        set.state_limit = Some(StateLimit {
            budget: Budget::Keys(3),
            beyond,
        });
        set
    };
    let mut harness = Harness::new(vec![pipeline(vec![limited(Beyond::Reject)])], vec![log.clone()]);
    finish(&mut harness);
    assert_eq!(harness.on("t.dead_letters").len(), 7);
    let mut harness = Harness::new(vec![pipeline(vec![limited(Beyond::Fail)])], vec![log]);
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| finish(&mut harness))).unwrap_err();
    let said = stopped.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(
        said.contains("3 keys") && said.contains("ON STATE LIMIT FAIL"),
        "{said}"
    );
    assert!(harness.on("t.dead_letters").is_empty());
}

#[test]
fn records_are_split_below_the_limit() {
    let rows = (0..400).map(|at| {
        row(
            10_000,
            &format!("service-{at:04}-{:x}", at * 7_919 % 65_536),
            f64::from(at).sqrt(),
        )
    });
    let log = vec![entry(rows.collect()), entry(vec![row(90_000, "z", 0.0)])];
    let small = Options {
        message_bytes_max: 4_000,
        ..options()
    };
    let sets = vec![by_service()];
    let mut harness = Harness::with(vec![pipeline(sets.clone())], vec![log], small);
    finish(&mut harness);
    let panes = harness
        .on("t.panes")
        .into_iter()
        .filter(|o| header(o, "kind") == Some("panes"));
    assert!(panes.clone().count() > 6);
    assert!(
        panes
            .clone()
            .all(|output| output.value.as_ref().unwrap().len() <= 3_000)
    );
    check(&harness, &sets);
}

#[test]
fn every_key_has_one_target_partition() {
    let rows = |at: i64| (0..50).map(move |key| row(at, &format!("s{key}"), 1.0)).collect();
    let log = (0..2).map(|_| {
        vec![
            entry(rows(10_000)),
            entry(rows(12_000)),
            entry(vec![row(90_000, "z", 0.0)]),
        ]
    });
    let mut harness = Harness::new(vec![pipeline(vec![by_service()])], log.collect());
    finish(&mut harness);
    let mut targets: BTreeMap<String, i32> = BTreeMap::new();
    for (target, _, rows) in harness.panes() {
        for row in 0..rows.num_rows() {
            let key = array_value_to_string(rows.column(2), row).unwrap();
            assert_eq!(*targets.entry(key).or_insert(target), target);
        }
    }
    assert_eq!(
        targets.values().collect::<std::collections::BTreeSet<_>>().len(),
        3,
        "all partitions are used"
    );
}

#[test]
fn progress_goes_to_every_partition_after_the_panes() {
    let log = vec![
        vec![entry(vec![row(10_000, "a", 1.0)]), entry(vec![row(20_000, "a", 1.0)])],
        vec![],
    ];
    let mut harness = Harness::new(vec![pipeline(vec![by_service()])], log);
    harness.step(&[0, 1], 9);
    harness.commit();
    let kinds: Vec<_> = harness
        .visible
        .iter()
        .map(|o| (header(o, "kind").unwrap().to_owned(), o.partition))
        .collect();
    let progress = |partition| ("progress".to_owned(), Some(partition));
    assert_eq!(kinds[kinds.len() - 3..], [progress(0), progress(1), progress(2)]);
    let told = last(&harness);
    assert_eq!((told.source, told.partition_count), (SOURCE, 2));
    assert_eq!(told.partitions[0].watermark_ms, Some(19_300));
    assert_eq!(told.partitions[0].source_offset, 2);
    assert_eq!(told.partitions[1].watermark_ms, None);
    assert_eq!(told.partitions[0].sets[0].first_pane_ms, None);
    // Then about once a second, and nothing between.
    harness.visible.clear();
    harness.tick(1);
    harness.commit();
    let before = harness.visible.len();
    harness.tick(100);
    harness.commit();
    assert_eq!(harness.visible.len(), before);
    harness.tick(1_000);
    harness.commit();
    assert_eq!(harness.visible.len(), before + 3);
}

#[test]
fn a_new_set_starts_ahead_of_every_row_seen() {
    let log = vec![entry(vec![row(10_000, "a", 1.0)]), entry(vec![row(15_900, "a", 20.0)])];
    let mut harness = Harness::new(vec![pipeline(vec![by_service()])], vec![log]);
    harness.step(&[0], 9);
    harness.commit();
    harness.pipelines = vec![pipeline(vec![by_service(), large()])];
    harness.log_start = 1;
    harness.crash();
    harness.log[0].extend([
        entry(vec![row(15_950, "a", 30.0)]),
        entry(vec![row(16_000, "a", 40.0)]),
        entry(vec![row(90_000, "z", 0.0)]),
    ]);
    finish(&mut harness);
    let set = large();
    let windows = harness.windows(&set, &set.windows[0]);
    assert_eq!(
        windows.values().map(|(_, sum)| *sum).fold(0.0, f64::max),
        40.0,
        "15_950 lies before the first pane"
    );
    let sets = &last(&harness).partitions[0].sets;
    assert_eq!(
        sets.iter().map(|set| set.first_pane_ms).collect::<Vec<_>>(),
        [None, Some(16_000)]
    );
    // The old set goes on as if nothing had happened.
    check_old(&harness);
}

#[test]
fn a_new_set_has_what_was_read_before() {
    let rows = |from: i64, to: i64| {
        (from..to).map(|at| entry(vec![row(10_000 + at * 137, ["a", "b"][at as usize % 2], at as f64)]))
    };
    // Rows that came late: a set that reads them again has all of them.
    let late = |at: i64| entry(vec![row(10_000 + at * 137, "a", 1_000.0)]);
    for (count, crash_every) in [(1, 3), (7, 2), (40, 1_000)] {
        let mut log: Vec<_> = rows(0, 200).collect();
        log.insert(150, late(20));
        let mut harness = Harness::new(vec![pipeline(vec![by_service()])], vec![log, rows(0, 120).collect()]);
        harness.drain(9);
        harness.commit();
        let mut large = large();
        // As far as a window of a day reaches, which is all there is.
        large.windows[0].lateness_ms = 86_400_000;
        harness.pipelines = vec![pipeline(vec![by_service(), large.clone()])];
        harness.crash();
        harness.log[0].extend(rows(200, 300));
        harness.log[1].extend(rows(120, 300));
        let mut turn = 0;
        while harness.reread(count) || turn < 200 {
            harness.step(&[0, 1], 25);
            harness.tick(1);
            turn += 1;
            assert!(turn < 5_000, "what is read again and what is new do not meet");
            if turn % 2 == 0 {
                harness.commit();
            }
            if turn % crash_every == 0 {
                harness.crash();
            }
        }
        harness
            .log
            .iter_mut()
            .for_each(|log| log.push(entry(vec![row(900_000, "z", 0.0)])));
        finish(&mut harness);
        let mut expected = BTreeMap::new();
        let window = &large.windows[0];
        for read in harness.log.iter().flatten().flat_map(|entry| &entry.rows) {
            let Some(ts) = read.ts.filter(|_| read.value > 10.0) else {
                continue;
            };
            let mut start = ts - ts.rem_euclid(window.slide_ms);
            while start + window.size_ms > ts {
                let counted: &mut (i64, f64) = expected.entry(start + window.size_ms).or_default();
                counted.0 += 1;
                counted.1 += read.value;
                start -= window.slide_ms;
            }
        }
        let found = harness.windows(&large, window);
        let found: BTreeMap<i64, (i64, f64)> = found.into_iter().map(|((end, _), counted)| (end, counted)).collect();
        assert_eq!(
            found, expected,
            "{count} records at a time, a crash every {crash_every}"
        );
        let sets = &last(&harness).partitions[0].sets;
        assert!(sets[1].met_ms.is_some_and(|met_ms| met_ms > 10_000), "{sets:?}");
        check_old(&harness);
    }
}

#[test]
fn a_new_set_over_receive_times_has_the_past_by_the_records_own_timestamps() {
    let mut heartbeat = source();
    heartbeat.format = Format::Heartbeat;
    let over = |sets: Vec<PaneSetSpec>| Pipeline {
        sources: vec![heartbeat.clone()],
        ..pipeline(sets)
    };
    let mut harness = Harness::new(vec![over(vec![by_service()])], vec![Vec::new()]);
    harness.receive = true;
    harness.tick(20_000);
    // Each beat is received at the time at which it was sent, so that both are the same.
    let beat = |harness: &mut Harness, value: f64| {
        harness.tick(137);
        let now_ms = harness.now_ms;
        harness.log[0].push(entry(vec![row(now_ms, "a", value)]));
        harness.step(&[0], 1);
    };
    (0..150).for_each(|_| beat(&mut harness, 20.0));
    // A producer whose clock is wrong; `large` counts the row, `by_service` is not asked.
    let ahead = harness.log[0].len() / 2;
    harness.log[0][ahead].timestamp_ms = 4_102_444_800_000;
    harness.commit();
    let mut large = large();
    large.windows[0].lateness_ms = 86_400_000;
    harness.pipelines = vec![over(vec![by_service(), large.clone()])];
    harness.crash();
    let mut turn = 0;
    while harness.reread(7) || turn < 60 {
        beat(&mut harness, 30.0);
        turn += 1;
        assert!(turn < 1_000, "what is read again and what is new do not meet");
        if turn % 3 == 0 {
            harness.commit();
        }
        if turn % 10 == 0 {
            harness.commit();
            harness.crash();
        }
    }
    harness.tick(900_000);
    beat(&mut harness, 0.0);
    finish(&mut harness);
    // The beat from the future is in the log at the latest time that was known, which is one of a few.
    let mut log = harness.log.clone();
    log[0].remove(ahead);
    let window = &large.windows[0];
    let found = harness.windows(&large, window);
    let expected = expected(&log, &large, window).windows;
    let rows = |windows: &super::tests::harness::Windows| windows.values().map(|(count, _)| *count).sum::<i64>();
    let per_row = window.size_ms / window.slide_ms;
    assert_eq!(rows(&found), rows(&expected) + per_row, "every beat is there once");
    assert!(
        expected
            .iter()
            .all(|(at, (count, _))| found.get(at).is_some_and(|found| found.0 >= *count))
    );
    assert!(
        found
            .keys()
            .all(|(end_ms, _)| *end_ms < harness.now_ms + window.size_ms)
    );
}

fn check_old(harness: &Harness) {
    let set = by_service();
    for window in &set.windows {
        let expected = expected(&harness.log, &set, window);
        assert_windows(&harness.windows(&set, window), &expected.windows, &window.view);
    }
}

#[test]
fn partitions_ahead_of_the_slowest_are_paused() {
    let ahead = vec![entry(vec![row(10_000, "a", 1.0)]), entry(vec![row(30_000, "a", 1.0)])];
    let behind = (0..30)
        .map(|at| entry(vec![row(10_000 + at * 500, "a", 1.0)]))
        .collect();
    let mut harness = Harness::new(vec![pipeline(vec![by_service()])], vec![ahead, behind]);
    harness.step(&[0, 1], 1);
    assert!(harness.stage.paused().is_empty());
    harness.step(&[0], 1);
    assert_eq!(harness.stage.paused(), [harness.place(0)]);
    harness.step(&[1], 25);
    assert_eq!(
        harness.stage.paused(),
        [harness.place(0)],
        "8 s ahead: it does not flap"
    );
    harness.log[1].push(entry(vec![row(26_000, "a", 1.0)]));
    harness.step(&[1], 9);
    assert!(harness.stage.paused().is_empty());
    // Another instance's partition holds it too, unless that one is idle.
    let mut told = SourceProgress {
        source: SOURCE,
        partition_count: 3,
        partitions: vec![protocol::log::PartitionProgress {
            partition: 2,
            watermark_ms: Some(9_000),
            idle: false,
            source_offset: 1,
            sets: Vec::new(),
            version: 0,
        }],
        clock: 0,
    };
    harness.hears(&told);
    assert_eq!(harness.stage.paused().len(), 2);
    told.partitions[0].idle = true;
    harness.hears(&told);
    assert!(harness.stage.paused().is_empty());
}

#[test]
fn a_commit_that_contradicts_the_log_stops_the_partition() {
    let log = vec![vec![
        entry(vec![row(10_000, "a", 1.0)]),
        entry(vec![row(10_100, "a", 1.0)]),
    ]];
    let mut harness = Harness::new(vec![pipeline(vec![by_service()])], log);
    harness.step(&[0], 2);
    harness.commit();
    harness.log[0].truncate(1);
    let error = harness.assign().unwrap_err().to_string();
    assert!(error.contains("metrics[0]") && error.contains("made anew"), "{error}");
    harness.committed.get_mut(&0).unwrap().metadata = "v0;?".into();
    let error = harness.assign().unwrap_err().to_string();
    assert!(error.contains("commit metadata"), "{error}");
}

#[test]
fn pipelines_that_declare_the_same_source_share_its_rows() {
    // The second pipeline's projection lacks `service` and puts the rest in another order.
    let schema = Arc::new(Schema::new(vec![schema().field(2).clone(), schema().field(0).clone()]));
    let mut narrow = source();
    narrow.schema = Arc::clone(&schema);
    narrow.event_time = 1;
    let mut set = large();
    let value = || col("value", &schema).unwrap();
    set.filter = Some(binary(value(), Operator::Gt, lit(10.0), &schema).unwrap());
    set.aggregates[1].args = vec![value()];
    let mut second = pipeline(vec![set]);
    second.name = "second".into();
    second.sources = vec![narrow];
    let log: Vec<Entry> = (0..40)
        .map(|at| entry(vec![row(10_000 + at * 100, "a", at as f64)]))
        .collect();
    let log: Vec<Entry> = log.into_iter().chain([entry(vec![row(90_000, "z", 0.0)])]).collect();
    let mut harness = Harness::new(vec![pipeline(vec![by_service()]), second], vec![log]);
    harness.step(&[0], 20);
    harness.commit();
    harness.crash();
    finish(&mut harness);
    check(&harness, &[by_service(), large()]);
    assert_eq!(last(&harness).partitions[0].sets.len(), 2);
}

#[test]
fn two_sources_on_one_topic_have_watermarks_of_their_own() {
    let mut patient = source();
    patient.fingerprint = 8;
    patient.delay_ms = 10_000;
    let mut set = large();
    set.fingerprint = 80;
    let mut second = pipeline(vec![set]);
    second.name = "second".into();
    second.sources = vec![patient];
    let log: Vec<Entry> = (0..60)
        .map(|at| entry(vec![row(10_000 + at * 200 - (at % 7) * 900, "a", at as f64)]))
        .collect();
    let log: Vec<Entry> = log.into_iter().chain([entry(vec![row(90_000, "z", 0.0)])]).collect();
    for boundary in 1..60 {
        let mut harness = Harness::new(vec![pipeline(vec![by_service()]), second.clone()], vec![log.clone()]);
        harness.step(&[0], boundary);
        harness.commit();
        harness.crash();
        finish(&mut harness);
        for window in &by_service().windows {
            let expected = expected(&harness.log, &by_service(), window);
            assert_windows(&harness.windows(&by_service(), window), &expected.windows, &window.view);
        }
        let mut set = large();
        set.fingerprint = 80;
        let rows: i64 = harness
            .windows(&set, &set.windows[0])
            .values()
            .map(|(count, _)| count)
            .sum();
        assert_eq!(rows, 2 * 49, "nothing is late by 10 s, and every row is in two windows");
    }
}

#[test]
fn a_row_over_which_an_expression_fails_is_a_dead_letter() {
    let schema = schema();
    let value = col("value", &schema).unwrap();
    let whole = cast(value, &schema, DataType::Int64).unwrap();
    let share = binary(lit(100_i64), Operator::Divide, whole, &schema).unwrap();
    let mut set = large();
    set.filter = Some(binary(share, Operator::Gt, lit(0_i64), &schema).unwrap());
    let rows = [1.0, 2.0, 0.0, 4.0, 0.0]
        .iter()
        .map(|value| entry(vec![row(10_000, "a", *value), row(10_001, "a", 1.0)]));
    let log: Vec<Entry> = rows.chain([entry(vec![row(90_000, "z", 1.0)])]).collect();
    let mut harness = Harness::new(vec![pipeline(vec![set.clone()])], vec![log]);
    finish(&mut harness);
    let dead = harness.on("t.dead_letters");
    assert_eq!(
        dead.iter()
            .map(|dead| header(dead, "source_offset").unwrap())
            .collect::<Vec<_>>(),
        ["2", "4"]
    );
    assert!(
        header(dead[0], "reason")
            .unwrap()
            .to_lowercase()
            .contains("divide by zero")
    );
    let windows = harness.windows(&set, &set.windows[0]);
    assert_eq!(windows[&(10_500, String::new())], (8, 12.0));
}

#[test]
fn receive_times_are_published_with_their_commit() {
    let mut heartbeat = source();
    heartbeat.format = Format::Heartbeat;
    let mut pipeline = pipeline(vec![by_service()]);
    pipeline.sources = vec![heartbeat];
    let beat = Entry {
        timestamp_ms: 5,
        rows: vec![row(-1, "a", 1.0)],
        poison: false,
    };
    let mut harness = Harness::new(vec![pipeline], vec![vec![beat; 6]]);
    harness.tick(1);
    harness.receive = true;
    harness.step(&[0], 2);
    harness.commit();
    harness.step(&[0], 2);
    // A replay would give these records another time: they are not replayed, or not yet published.
    harness.now_ms += 5_000;
    harness.crash();
    assert_eq!(harness.positions[0], 2);
    finish(&mut harness);
    let counted: i64 = harness
        .panes()
        .iter()
        .map(|(_, _, rows)| rows.column(3).as_primitive::<Int64Type>().value(0))
        .sum();
    assert_eq!(counted, 6);
    assert!(
        harness.on("t.dead_letters").is_empty(),
        "no skew is judged where the producer's clock says nothing"
    );
}
