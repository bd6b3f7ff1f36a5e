//! Invariants 1, 2, 3 and 12 on a real Kafka: SIGKILL at every named point of the loop, in every stage, leaves what a run
//! without crashes leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use tests::rig;

use crate::{
    delivery::{alarms, published_windows},
    fleet::{Fleet, comparable},
    workload::{self, CONFIG, PIPELINE},
};

static POINTS: [&str; 6] = [
    "after_poll",
    "after_step",
    "after_produce",
    "after_send_offsets",
    "before_commit",
    "after_commit",
];
/// Kills of each stage at each point.
const REPEATS: usize = 3;
const SERVICES: usize = 5;
const TOPICS: [&str; 4] = ["anomalies", "actions", "decisions", "late"];

type Content = BTreeMap<&'static str, BTreeMap<String, Vec<(String, String, Value)>>>;

fn rows() -> Vec<(i32, Vec<u8>)> {
    workload::rows(SERVICES, 200, 40, 4)
}

fn config() -> String {
    // Small commits and small fetches, so that there are many transactions to die in, and many polls in each.
    format!(
        "[kafka]\nfetch_partition_bytes = 20000\n\
         [detect]\nstate_interval = \"5s\"\n{CONFIG}concurrency_min = 1000\n"
    )
}

/// What a fleet has published when everything is in: every window, and every service's decision and command.
fn content(fleet: &Fleet) -> anyhow::Result<Content> {
    let windows = workload::windows(&rows()).len();
    let anomalies = fleet.wait("anomalies", Duration::from_secs(240), |found| alarms(found) >= windows)?;
    assert_eq!(published_windows(&anomalies), workload::windows(&rows()));
    fleet.wait("actions", Duration::from_secs(120), |found| found.len() >= SERVICES)?;
    // What would come twice has had time to come.
    std::thread::sleep(Duration::from_secs(2));
    TOPICS
        .iter()
        .map(|topic| Ok((*topic, comparable(&fleet.read(topic)?))))
        .collect()
}

fn start_fleet(name: &str) -> anyhow::Result<Fleet> {
    let fleet = Fleet::new(name, PIPELINE, &config())?;
    fleet.create("app", 4, false)?;
    fleet.feed("app", rows())?;
    Ok(fleet)
}

/// The content of a run without crashes. Fleets of one tenant mint equal ids.
fn undisturbed() -> anyhow::Result<&'static Content> {
    static CONTENT: OnceLock<Result<Content, String>> = OnceLock::new();
    let content = CONTENT.get_or_init(|| {
        let run = || {
            let fleet = start_fleet("recovery")?;
            let process = fleet.start(&[])?;
            let content = content(&fleet)?;
            ensure!(process.terminate()? == 0);
            Ok(content)
        };
        run().map_err(|error: anyhow::Error| format!("{error:#}"))
    });
    content
        .as_ref()
        .map_err(|error| anyhow::anyhow!("the run without crashes failed: {error}"))
}

/// Runs a fleet that is killed at each of these places in turn, the nth time it comes there, and then left alone.
fn killed_at(
    places: &[(&str, &str)],
    nth: u32,
    environment: &[(&str, &str)],
) -> anyhow::Result<(Content, Vec<String>)> {
    let fleet = start_fleet("recovery")?;
    let marks = fleet.folder.path().join("marks");
    for (stage, point) in places {
        let crash = format!("{stage}:{point}:{nth}:{}", marks.display());
        let mut variables = vec![("HOMEOSTAT_TEST_CRASH_POINT", crash.as_str())];
        variables.extend(environment);
        let mut process = fleet.start(&variables)?;
        process
            .wait_killed(Duration::from_secs(180))
            .with_context(|| format!("{stage} at {point}"))?;
    }
    let process = fleet.start(environment)?;
    let content = content(&fleet)?;
    ensure!(process.terminate()? == 0);
    let marks = fs::read_to_string(marks)?;
    Ok((content, marks.lines().map(str::to_owned).collect()))
}

#[test]
fn killed_at_every_point_of_every_stage_the_content_is_that_of_a_run_without_crashes() -> anyhow::Result<()> {
    let _alone = rig::Kafka::alone();
    let expected = undisturbed()?;
    // Two fleets a repeat, each killed several times in a row. A kill before the commit leaves the work to the next life, so
    // decide and aggregate die over their own results first, and over time's progress later.
    let all = |stage: &'static str| POINTS.iter().map(move |point| (stage, *point));
    let (early, late) = POINTS.split_at(2);
    let detect = |points: &'static [&'static str]| points.iter().map(|point| ("detect", *point));
    let shares: Vec<Vec<(&str, &str)>> = (0..REPEATS)
        .flat_map(|_| [all("decide").chain(detect(late)), all("aggregate").chain(detect(early))])
        .map(Iterator::collect)
        .collect();
    let places: Vec<(&str, &str)> = shares.concat();
    let marks = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let marks = &marks;
        let fleets: Vec<_> = shares
            .iter()
            .map(|share| {
                scope.spawn(move || -> anyhow::Result<()> {
                    let (content, marked) = killed_at(share, 1, &[])?;
                    for topic in TOPICS {
                        assert_eq!(content[topic], expected[topic], "{topic} after kills at {share:?}");
                    }
                    marks.lock().expect("no other fleet panicked").extend(marked);
                    Ok(())
                })
            })
            .collect();
        fleets
            .into_iter()
            .try_for_each(|fleet| fleet.join().expect("the comparison above names the topic"))
    })?;
    // Every kill met an open transaction with output in it (after_commit: one that had just been committed).
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    for mark in marks.into_inner()? {
        let parts: Vec<&str> = mark.split(' ').collect();
        let records: usize = parts[2].parse()?;
        ensure!(records > 0, "killed without output: {mark}");
        *seen.entry((parts[0].to_owned(), parts[1].to_owned())).or_default() += 1;
    }
    let wanted: BTreeSet<(String, String)> = places
        .iter()
        .map(|(stage, point)| (stage.to_string(), point.to_string()))
        .collect();
    assert_eq!(seen.keys().cloned().collect::<BTreeSet<_>>(), wanted);
    ensure!(seen.values().all(|count| *count >= REPEATS), "{seen:?}");
    println!(
        "{} kills, each with output in an open transaction: {seen:?}",
        places.len()
    );
    Ok(())
}

#[test]
fn without_offsets_in_the_transaction_the_comparison_fails() -> anyhow::Result<()> {
    let _alone = rig::Kafka::alone();
    let expected = undisturbed()?;
    let places = [("aggregate", "after_commit"), ("detect", "after_commit")];
    // A window published twice panics in there: that is noticing, too.
    let run = || killed_at(&places, 3, &[("HOMEOSTAT_TEST_SKIP_SEND_OFFSETS", "1")]);
    let same = match std::thread::scope(|scope| scope.spawn(run).join()) {
        Ok(Ok((content, _))) => TOPICS.iter().all(|topic| content[topic] == expected[topic]),
        Ok(Err(_)) | Err(_) => false,
    };
    ensure!(!same, "rows were read twice, and nobody noticed");
    Ok(())
}
