//! `homeostat model`: which learned model chooses. A model is a control record; a newer one replaces it, an older one comes back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kafka::Shutdown;
use protocol::{
    CloudEvent, Topics, cloudevent,
    message::{self, Control, Decision, Journal, VerdictRecord},
};
use remediation::choose::{
    self, Drawing, Evaluation, Model as Learned, Promotion, TrainOptions, evaluate, promote, train,
};

use super::{
    Output,
    control::{Author, Fleet, now_ms, publish},
    print_json,
    recording::Recording,
};
use crate::{error::Refused, signals, topic_reader};

/// Shows, promotes and rolls back the models that choose actions.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat model promote model.json --policy shop.heal")]
pub struct Model {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Models in force and before, newest first
    List {
        #[command(flatten)]
        fleet: Fleet,
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Judges a model by the decisions on record, and puts it in force if they say that it is no worse
    Promote {
        /// A file that `homeostat train` wrote
        file: PathBuf,
        /// pipeline.policy, or * for every policy without a model of its own
        #[arg(long, default_value = "*")]
        policy: String,
        /// Puts it in force whatever the record says; needs --reason
        #[arg(long)]
        force: bool,
        /// Says what would happen and changes nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        fleet: Fleet,
        #[command(flatten)]
        author: Author,
    },
    /// Learns a model from the verdicts on record, and puts it in force if those that it did not learn from say that it is no worse
    Retrain {
        /// pipeline.policy, or * for every policy without a model of its own
        #[arg(long, default_value = "*")]
        policy: String,
        /// A table as `homeostat train` takes it, learned from as well
        #[arg(long, value_name = "FILE")]
        past: Option<PathBuf>,
        /// Again and again, so far apart, until it is stopped: 1day
        #[arg(long, value_parser = humantime::parse_duration)]
        every: Option<Duration>,
        /// Says what would happen and changes nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        fleet: Fleet,
        #[command(flatten)]
        author: Author,
    },
    /// Puts the model before the one in force back
    Rollback {
        #[arg(long, default_value = "*")]
        policy: String,
        #[command(flatten)]
        fleet: Fleet,
        #[command(flatten)]
        author: Author,
    },
}

/// A model as it was put in force.
struct Published {
    at_ms: i64,
    policy: String,
    by: String,
    reason: String,
    model: serde_json::Value,
    version: String,
}

impl Model {
    pub fn run(&self) -> anyhow::Result<()> {
        match &self.what {
            What::List { fleet, output } => list(fleet, *output),
            What::Promote {
                file,
                policy,
                force,
                dry_run,
                fleet,
                author,
            } => {
                if *force && author.reason.is_empty() {
                    return Err(Refused::new("--force without --reason")
                        .help("say why the record does not count")
                        .into());
                }
                let model = read(file)?;
                let record = Record::open(fleet, policy)?;
                let said = match (record.judge(fleet, &model)?, *force) {
                    (Err(said), false) => {
                        return Err(Refused::new(said)
                            .help("the model in force stays; --force with --reason overrules")
                            .into());
                    }
                    (Err(said), true) => Some(said),
                    (Ok(()), _) => None,
                };
                said.iter()
                    .for_each(|said| println!("{said}; put in force all the same"));
                match dry_run {
                    true => Ok(()),
                    false => put_in_force(fleet, policy, author, &model),
                }
            }
            What::Retrain {
                policy,
                past,
                every,
                dry_run,
                fleet,
                author,
            } => {
                let once = || retrain(fleet, policy, past.as_deref(), *dry_run, author);
                match every {
                    None => once()?.map_err(|said| Refused::new(said).help("the model in force stays").into()),
                    Some(every) => repeat(*every, once),
                }
            }
            What::Rollback { policy, fleet, author } => roll_back(fleet, policy, author),
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Learned> {
    let bytes = std::fs::read(file).map_err(|error| Refused::new(format!("{}: {error}", file.display())))?;
    let model = Learned::from_json(&bytes).map_err(|reason| {
        Refused::new(format!("{}: {reason}", file.display())).help("a model is a file that `homeostat train` wrote")
    })?;
    Ok(model)
}

/// Decisions of the policies that a model would choose for, and what came of them.
struct Record {
    decisions: Vec<Decision>,
    verdicts: Vec<VerdictRecord>,
}

impl Record {
    fn open(fleet: &Fleet, policy: &str) -> anyhow::Result<Self> {
        let Recording {
            mut decisions,
            verdicts,
            ..
        } = Recording::open(fleet, None)?;
        decisions.retain(|decision| policy == "*" || policy == format!("{}.{}", decision.pipeline, decision.policy));
        Ok(Self { decisions, verdicts })
    }

    /// What the record says of a model. Why it may not be put in force is the inner error.
    fn judge(&self, fleet: &Fleet, model: &Learned) -> anyhow::Result<Result<(), String>> {
        let config = crate::config::load(fleet.config.as_deref())?.decide.choose;
        let drawing = Drawing {
            propensity_min: config.propensity_min,
            propensity_max: config.propensity_max,
            prior_strength: config.prior_strength,
        };
        let log = choose::log(&self.decisions, &self.verdicts, model, drawing);
        let evaluation = evaluate(&log);
        evaluation.iter().for_each(print_evaluation);
        let promotion = match &evaluation {
            Some(evaluation) => promote(evaluation, evaluation.logged.value),
            None => Promotion::InsufficientEvidence {
                reason: "no decision with a clear verdict is on record".into(),
            },
        };
        Ok(match promotion {
            Promotion::Promote => Ok(()),
            Promotion::InsufficientEvidence { reason } => Err(insufficient(&reason)),
            Promotion::Worse { reason } => Err(format!("worse than what runs: {reason}")),
        })
    }
}

fn insufficient(reason: &dyn std::fmt::Display) -> String {
    format!("insufficient evidence: {reason}")
}

/// Learns from the older half of the record and is judged by the newer one. Why nothing changed is the inner error.
fn retrain(
    fleet: &Fleet,
    policy: &str,
    past: Option<&Path>,
    dry_run: bool,
    author: &Author,
) -> anyhow::Result<Result<(), String>> {
    let Record { decisions, verdicts } = Record::open(fleet, policy)?;
    let (older, newer) = choose::halves(&decisions, &verdicts);
    let mut examples = choose::examples(&older, &verdicts);
    println!("{} incidents on record to learn from", examples.len());
    if let Some(path) = past {
        examples.extend(super::choose::past(path)?.examples);
    }
    let model = match train(&examples, &TrainOptions::default()) {
        Ok(model) => model,
        Err(error) => return Ok(Err(insufficient(&error))),
    };
    let (broker, topics, _) = fleet.open()?;
    let mut published = published(&*broker, &topics)?.into_iter();
    let in_force = published.find(|published| published.policy == policy);
    if in_force.is_some_and(|in_force| in_force.version == model.version()) {
        println!("model {} chooses for {policy} already", model.version());
        return Ok(Ok(()));
    }
    let record = Record {
        decisions: newer,
        verdicts,
    };
    let judged = record.judge(fleet, &model)?;
    if judged.is_ok() && !dry_run {
        put_in_force(fleet, policy, author, &model)?;
    }
    Ok(judged)
}

/// Beside the fleet, until it is told to stop. What fails today may succeed tomorrow.
fn repeat(every: Duration, once: impl Fn() -> anyhow::Result<Result<(), String>>) -> anyhow::Result<()> {
    const TURN: Duration = Duration::from_millis(200);
    let shutdown = Shutdown::new();
    signals::request_on_signal(shutdown.clone())?;
    while !shutdown.is_requested() {
        match once() {
            Ok(Ok(())) => {}
            Ok(Err(said)) => println!("{said}; the model in force stays"),
            Err(error) => eprintln!("error: {error:#}; tried again in {}", humantime::format_duration(every)),
        }
        let began = Instant::now();
        while began.elapsed() < every && !shutdown.is_requested() {
            std::thread::sleep(TURN.min(every));
        }
    }
    Ok(())
}

fn print_evaluation(evaluation: &Evaluation) {
    println!(
        "{} decisions on record, worth {:.0} of this model's own",
        evaluation.decisions, evaluation.effective_samples
    );
    let estimates = [
        ("ips", evaluation.ips),
        ("snips", evaluation.snips),
        ("dr", evaluation.dr),
        ("what runs", evaluation.logged),
    ];
    for (name, estimate) in estimates {
        println!(
            "  {name:<9} {:.3} ({:.3} to {:.3})",
            estimate.value, estimate.low, estimate.high
        );
    }
}

/// Every model that was ever put in force: `control` is compacted and has the newest of each policy alone, the journal of
/// what was decided on has those before.
fn published(broker: &dyn kafka::Broker, topics: &Topics) -> anyhow::Result<Vec<Published>> {
    let mut found = Vec::new();
    topic_reader::read(broker, &topics.control(), |record| {
        let control = record.value.and_then(|value| message::read("control", value).ok());
        found.extend(control.and_then(|control| Published::of(record.timestamp_ms, control)));
    })?;
    topic_reader::read(broker, &topics.decisions(), |record| {
        if CloudEvent::kind_of(&record) != Some(cloudevent::JOURNAL) {
            return;
        }
        let journal = record
            .value
            .and_then(|value| message::read::<Journal>("journal", value).ok());
        let controls = journal
            .into_iter()
            .flat_map(|journal| journal.control.into_values().flatten());
        found.extend(controls.filter_map(|control| Published::of(record.timestamp_ms, control)));
    })?;
    found.sort_by_key(|published| -published.at_ms);
    // The journal repeats what stands on `control`.
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    found.retain(|published| {
        let before = last.insert(published.policy.clone(), published.version.clone());
        before.as_ref() != Some(&published.version)
    });
    Ok(found)
}

impl Published {
    fn of(at_ms: i64, control: Control) -> Option<Self> {
        let Control::Model {
            policy,
            model,
            by,
            reason,
        } = control
        else {
            return None;
        };
        let version = Learned::from_json(model.to_string().as_bytes()).map(|model| model.version());
        Some(Self {
            at_ms,
            policy,
            by,
            reason,
            model,
            version: version.unwrap_or_else(|reason| reason),
        })
    }
}

fn list(fleet: &Fleet, output: Output) -> anyhow::Result<()> {
    let (broker, topics, _) = fleet.open()?;
    for published in published(&*broker, &topics)? {
        let at = protocol::time::to_rfc3339(published.at_ms.max(0));
        let Published {
            policy,
            by,
            reason,
            version,
            ..
        } = published;
        match output {
            Output::Json => print_json(
                &serde_json::json!({"at": at, "policy": policy, "version": version, "by": by, "reason": reason}),
            ),
            Output::Text => println!("{at} {policy} {version} by {by} {reason}"),
        }
    }
    Ok(())
}

fn roll_back(fleet: &Fleet, policy: &str, author: &Author) -> anyhow::Result<()> {
    let (broker, topics, _) = fleet.open()?;
    let all = published(&*broker, &topics)?;
    let mut of_policy = all.into_iter().filter(|published| published.policy == policy);
    let now = of_policy.next().map(|published| published.version);
    let Some(before) = of_policy.find(|published| Some(&published.version) != now.as_ref()) else {
        let refused = Refused::new(format!("the record has no model of {policy} before the one in force"));
        return Err(refused
            .help("`homeostat model promote FILE --force --reason …` puts any model in force")
            .into());
    };
    publish_model(fleet, policy, author, before.model, &before.version)
}

fn put_in_force(fleet: &Fleet, policy: &str, author: &Author, model: &Learned) -> anyhow::Result<()> {
    let written = serde_json::from_slice(&model.to_json())?;
    publish_model(fleet, policy, author, written, &model.version())
}

fn publish_model(
    fleet: &Fleet,
    policy: &str,
    author: &Author,
    model: serde_json::Value,
    version: &str,
) -> anyhow::Result<()> {
    let (broker, topics, _) = fleet.open()?;
    let control = Control::Model {
        policy: policy.to_owned(),
        model,
        by: author.by.clone(),
        reason: author.reason.clone(),
    };
    publish(&*broker, &topics, &control, now_ms())?;
    println!("model {version} chooses for {policy}");
    Ok(())
}
