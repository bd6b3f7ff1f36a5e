//! Versions of a fleet's pipelines on `control`: numbered, kept, and written by one at a time.
//!
//! Whoever writes the next version reads the ones before inside the same transaction, under a transactional id that all writers of
//! the fleet share: a second writer fences the first, so no two write the same number. What does not compile is never written.

mod begun;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use engine::{
    spec::{OptionValue, Pipeline},
    version::{Compile, Version},
};
use kafka::{Broker, ProducerConfig, Shutdown};
use protocol::{
    CloudEvent, Output, Topics, cloudevent, id,
    message::{self, Control, PipelineText, PipelinesOrigin},
};
use sql::{CatalogError, DetectorCatalog};
use tracing::{error, info, warn};

use crate::{
    error::Refused,
    pipelines::{self, Detectors, File},
    topic_reader,
};

/// Versions that `rollback` can bring back.
pub const KEPT: u64 = 100;
/// All pipelines of a version travel in one record.
const BYTES_MAX: usize = 900 << 10;
/// How often a watched folder is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often a version is written anew because somebody else wrote one meanwhile.
const ATTEMPTS_MAX: usize = 5;

/// One version as it was applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub number: u64,
    pub texts: Vec<PipelineText>,
    pub origin: PipelinesOrigin,
    pub restores: Option<u64>,
    pub by: String,
    pub at_ms: i64,
    pub reason: String,
}

/// What `control` says of a fleet's pipelines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    pub versions: BTreeMap<u64, Applied>,
    /// Older ones have no windows open.
    pub settled: u64,
    /// How many partitions the fleet's `panes` and `state` began with.
    pub panes_partitions: Option<i32>,
}

impl History {
    /// Reads it; the topic exists where a fleet runs.
    pub fn read(broker: &dyn Broker, topics: &Topics) -> Result<Self, kafka::Error> {
        let mut history = Self::default();
        topic_reader::read(broker, &topics.control(), |record| {
            let key = record
                .key
                .and_then(|key| std::str::from_utf8(key).ok())
                .unwrap_or_default();
            let Some(value) = record.value else {
                if let Some(number) = key.strip_prefix("pipelines/").and_then(|number| number.parse().ok()) {
                    history.versions.remove(&number);
                }
                return;
            };
            match message::read::<Control>("control", value) {
                Ok(Control::Pipelines {
                    version,
                    pipelines,
                    origin,
                    restores,
                    by,
                    at,
                    reason,
                }) => {
                    let applied = Applied {
                        number: version,
                        texts: pipelines,
                        origin,
                        restores,
                        by,
                        at_ms: at,
                        reason,
                    };
                    history.versions.insert(version, applied);
                }
                Ok(Control::PipelinesSettled { version }) => history.settled = history.settled.max(version),
                Ok(Control::Generation { panes_partitions }) => history.panes_partitions = Some(panes_partitions),
                _ => {}
            }
        })?;
        Ok(history)
    }

    /// The version in force.
    pub fn newest(&self) -> Option<&Applied> {
        self.versions.values().next_back()
    }

    /// The versions that may have windows open, oldest first, as plans.
    pub fn running(&self) -> Result<Vec<Version>, Refused> {
        let newest = self.newest().map_or(0, |applied| applied.number);
        let running = self.versions.range(self.settled.min(newest)..).map(|(_, applied)| {
            let pipelines = Compiler.compile(&applied.texts).map_err(|reason| {
                Refused::new(format!(
                    "version {} of the pipelines, which the fleet runs, cannot be run by this program: {reason}",
                    applied.number
                ))
            })?;
            Ok(Version {
                number: applied.number,
                texts: applied.texts.clone().into(),
                pipelines,
            })
        });
        running.collect()
    }
}

/// Compiles what was applied, without looking at any disk.
pub struct Compiler;

impl Compile for Compiler {
    fn compile(&self, texts: &[PipelineText]) -> Result<Arc<[Pipeline]>, String> {
        let compiled = texts.iter().map(|text| {
            let compiled = sql::compile(&text.name, &text.text, &Beside(text));
            let mut pipeline =
                compiled.map_err(|found| found.render(&format!("{}/pipeline.sql", text.name), &text.text, false))?;
            begun::apply(text, &mut pipeline);
            Ok(pipeline)
        });
        compiled.collect()
    }
}

/// The files that travel with a pipeline.
struct Beside<'a>(&'a PipelineText);

impl DetectorCatalog for Beside<'_> {
    fn check(&self, using: &str, options: &[(String, OptionValue)], features: usize) -> Result<(), CatalogError> {
        Detectors.check(using, options, features)
    }

    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        let found = self.0.files.get(path);
        found
            .map(|text| text.clone().into_bytes())
            .ok_or_else(|| format!("{path} was not applied with the pipeline"))
    }
}

/// Files on disk, and what they hold.
struct Recorded<'a> {
    folder: &'a Path,
    topics: &'a Topics,
    files: Mutex<BTreeMap<String, String>>,
}

impl DetectorCatalog for Recorded<'_> {
    fn check(&self, using: &str, options: &[(String, OptionValue)], features: usize) -> Result<(), CatalogError> {
        Detectors.check(using, options, features)
    }

    fn own_topic(&self, name: &str, prefixed: bool) -> Option<String> {
        pipelines::own_topic(self.topics, name, prefixed)
    }

    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        let full = self.folder.join(path);
        let text = std::fs::read_to_string(&full).map_err(|error| format!("{}: {error}", full.display()))?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(path.to_owned(), text.clone());
        Ok(text.into_bytes())
    }
}

/// Pipelines as they are applied to the fleet of these topics, and as plans; or everything that is wrong with any.
pub fn texts(files: &[File], topics: &Topics, color: bool) -> Result<(Vec<PipelineText>, Arc<[Pipeline]>), Refused> {
    let (mut texts, mut compiled) = (Vec::new(), Vec::new());
    let mut wrong = String::new();
    for file in files {
        let recorded = Recorded {
            folder: Path::new(&file.path).parent().unwrap_or(Path::new("")),
            topics,
            files: Mutex::default(),
        };
        match sql::compile(&file.name, &file.text, &recorded) {
            Ok(pipeline) => compiled.push(pipeline),
            Err(diagnostics) => wrong.push_str(&file.render(&diagnostics, color)),
        }
        texts.push(PipelineText {
            name: file.name.clone(),
            text: file.text.clone(),
            files: recorded.files.into_inner().unwrap_or_else(PoisonError::into_inner),
            begun: BTreeMap::new(),
        });
    }
    if !wrong.is_empty() {
        return Err(Refused::rendered(&wrong));
    }
    texts.sort_by(|a, b| a.name.cmp(&b.name));
    compiled.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = texts.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let help = "a pipeline is called as its folder, or as its file";
        return Err(Refused::new(format!("two pipelines are called {}", pair[0].name)).help(help));
    }
    Ok((texts, compiled.into()))
}

/// What is to become the next version.
pub struct Next {
    pub texts: Vec<PipelineText>,
    pub origin: PipelinesOrigin,
    pub restores: Option<u64>,
    pub by: String,
    pub reason: String,
}

/// What `control` says once the next version is written, and its number; none where there was nothing to write.
pub struct Put {
    pub history: History,
    pub written: Option<u64>,
}

/// Writes the next version, as `decide` makes it of those before; `None` writes nothing.
pub fn put(
    broker: &dyn Broker,
    topics: &Topics,
    now_ms: i64,
    decide: &mut dyn FnMut(&History) -> Result<Option<Next>, Refused>,
) -> anyhow::Result<Put> {
    for _ in 0..ATTEMPTS_MAX {
        let client = format!("{}apply", topics.prefix());
        let mut producer = broker.producer(&ProducerConfig::transactional(client.clone(), client))?;
        producer.begin()?;
        let mut history = History::read(broker, topics)?;
        let Some(next) = decide(&history)? else {
            producer.abort()?;
            return Ok(Put { history, written: None });
        };
        let Planned { number, texts, .. } = plan(&history, next.texts)?;
        let applied = Applied {
            number,
            texts,
            origin: next.origin,
            restores: next.restores,
            by: next.by,
            at_ms: now_ms,
            reason: next.reason,
        };
        let outputs = records(topics, &applied, &history)?;
        let written = outputs.iter().try_for_each(|output| producer.send(output));
        match written.and_then(|()| producer.commit()) {
            Ok(()) => {
                history.versions.insert(number, applied);
                let written = Some(number);
                return Ok(Put { history, written });
            }
            Err(error) => warn!(%error, "the version could not be written; somebody else may have written one"),
        }
    }
    Err(
        Refused::new("others go on applying pipelines: this version was not written")
            .help("try again")
            .into(),
    )
}

fn records(topics: &Topics, applied: &Applied, history: &History) -> Result<Vec<Output>, Refused> {
    let control = Control::Pipelines {
        version: applied.number,
        pipelines: applied.texts.clone(),
        origin: applied.origin,
        restores: applied.restores,
        by: applied.by.clone(),
        at: applied.at_ms,
        reason: applied.reason.clone(),
    };
    let (scope, now_ms) = (control.scope(), applied.at_ms);
    let mint = id::derived("control", &[&scope, &now_ms.to_string()]);
    let source = format!("/homeostat/{}/operator", topics.tenant());
    let event = CloudEvent::new(mint, topics.tenant(), &source, cloudevent::CONTROL, &scope, now_ms);
    let record = event.output(topics.control(), &control);
    let bytes = record.value.as_ref().map_or(0, Vec::len);
    if bytes > BYTES_MAX {
        let help = "pipelines and the files of their tables travel in one record: make the files smaller";
        return Err(Refused::new(format!("the pipelines have {bytes} bytes, at most {BYTES_MAX}")).help(help));
    }
    // What nobody can bring back and no window is of.
    let old = applied.number.saturating_sub(KEPT).min(history.settled);
    let gone = history.versions.range(..old).map(|(number, _)| Output {
        topic: topics.control().into(),
        partition: None,
        key: Some(format!("pipelines/{number}").into_bytes()),
        value: None,
        headers: Vec::new(),
    });
    Ok(gone.chain([record]).collect())
}

/// A version to come.
pub struct Planned {
    pub number: u64,
    pub texts: Vec<PipelineText>,
    /// Views that are to have all of their windows at once, each with how far behind its watermark what was read before is read again,
    /// milliseconds.
    pub backfilled: Vec<(String, i64)>,
}

/// What these texts would be as the next version. Refused where no instance could run it beside those whose windows are open.
pub fn plan(history: &History, mut texts: Vec<PipelineText>) -> Result<Planned, Refused> {
    let newest = history.newest();
    let number = newest.map_or(1, |newest| newest.number + 1);
    begun::mark(newest.map_or(&[][..], |newest| &newest.texts), number, &mut texts)?;
    let pipelines = Compiler.compile(&texts).map_err(|wrong| Refused::rendered(&wrong))?;
    let mut versions = history.running()?;
    versions.push(Version {
        number,
        texts: texts.clone().into(),
        pipelines,
    });
    let backfilled = engine::aggregate::check(&versions).map_err(|error| match newest {
        None => Refused::new(format!("these pipelines cannot run beside each other: {error}")),
        Some(_) => Refused::new(format!("it cannot run beside the version before: {error}")).help(
            "an edit keeps the panes of both until the windows of the old one are closed: edit fewer views at once",
        ),
    })?;
    Ok(Planned {
        number,
        texts,
        backfilled,
    })
}

/// Whether both are the same pipelines, whichever version they are of.
pub fn are_same(texts: &[PipelineText], other: &[PipelineText]) -> bool {
    texts.len() == other.len() && texts.iter().zip(other).all(|(text, other)| text.says(other))
}

/// What a process that is started with these pipelines runs: they become the next version, unless a person has said by command what
/// the fleet runs.
pub fn at_start(
    broker: &dyn Broker,
    topics: &Topics,
    history: History,
    texts: &[PipelineText],
    now_ms: i64,
) -> anyhow::Result<Vec<Version>> {
    let mut decide = |history: &History| match history.newest() {
        Some(newest) if are_same(&newest.texts, texts) => Ok(None),
        Some(newest) if newest.origin == PipelinesOrigin::Operator => {
            warn!(
                version = newest.number,
                by = newest.by,
                "the pipelines in the folder are not those that were applied, which run; `homeostat apply` applies them"
            );
            Ok(None)
        }
        _ => Ok(Some(of_folder(texts))),
    };
    // Most often there is nothing to write, which needs no transaction.
    let history = match decide(&history)? {
        None => history,
        Some(_) => put(broker, topics, now_ms, &mut decide)?.history,
    };
    Ok(history.running()?)
}

fn of_folder(texts: &[PipelineText]) -> Next {
    Next {
        texts: texts.to_vec(),
        origin: PipelinesOrigin::Folder,
        restores: None,
        by: "homeostat run".into(),
        reason: String::new(),
    }
}

/// Applies every change of a folder until a shutdown is requested. What is not valid is said and changes nothing.
pub fn watch(
    broker: &Arc<dyn Broker>,
    topics: Topics,
    folder: PathBuf,
    mut seen: Vec<PipelineText>,
    prepare: impl Fn(&[Pipeline]) -> anyhow::Result<()> + Send + 'static,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let broker = Arc::clone(broker);
    let mut refused = String::new();
    let mut look = move || -> anyhow::Result<()> {
        let (texts, pipelines) = self::texts(&pipelines::find(&folder)?, &topics, false)?;
        if texts == seen {
            return Ok(());
        }
        prepare(&pipelines)?;
        let now_ms = kafka::Clock::now_ms(&kafka::SystemClock);
        let put = put(&*broker, &topics, now_ms, &mut |history| {
            if history.newest().is_some_and(|newest| are_same(&newest.texts, &texts)) {
                return Ok(None);
            }
            Ok(Some(of_folder(&texts)))
        })?;
        info!(version = put.written, "the folder's pipelines are applied");
        seen = texts;
        Ok(())
    };
    thread::Builder::new().name("watch".into()).spawn(move || {
        while !shutdown.is_requested() {
            thread::sleep(WATCH_INTERVAL);
            match look() {
                Ok(()) => refused.clear(),
                // Once for each state of the folder.
                Err(problem) if format!("{problem:#}") != refused => {
                    refused = format!("{problem:#}");
                    error!(
                        reason = refused,
                        "the folder's pipelines are not applied; those before go on"
                    );
                }
                Err(_) => {}
            }
        }
    })?;
    Ok(())
}
