//! `homeostat apply` and `homeostat rollback`: another version of the pipelines, for a fleet that runs.

use std::{io::IsTerminal, path::PathBuf, sync::Arc};

use engine::{spec::Pipeline, version::Compile};
use kafka::Broker;
use protocol::{
    Topics,
    message::{PipelineText, PipelinesOrigin},
};
use serde_json::json;

use super::{
    Output,
    control::{Author, Fleet, now_ms},
    diff::{self, Change},
    print_json,
    validate::files,
};
use crate::{
    config::Config,
    error::Refused,
    processor,
    versions::{self, Applied, Compiler, History, Next},
};

/// Applies pipelines to the fleet while it runs: a folder as the whole set, a file as one pipeline of it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: homeostat apply pipelines --reason 'higher threshold for cart'\n\n\
                        What is not valid changes nothing. `homeostat rollback` takes it back."
)]
pub struct Apply {
    /// Folder with NAME/pipeline.sql, which becomes the whole set; or one pipeline, which replaces the one of its name
    path: PathBuf,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Brings an earlier version of the pipelines back, as a new one.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat rollback")]
pub struct Rollback {
    /// The version to bring back; the one before that in force when it is left out
    version: Option<u64>,
    /// Only list the versions there are
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Apply {
    pub fn run(&self) -> anyhow::Result<()> {
        let files = files(std::slice::from_ref(&self.path))?;
        let whole = self.path.is_dir() && !self.path.join("pipeline.sql").is_file();
        let topics = self.fleet.config()?.topics();
        let (texts, _) = versions::texts(&files, &topics, std::io::stderr().is_terminal())?;
        let (broker, topics, config) = self.fleet.open()?;
        let set = |history: &History| -> Vec<PipelineText> {
            let running = history.newest().map_or(&[][..], |newest| &newest.texts);
            let named = |other: &&PipelineText| texts.iter().all(|text| text.name != other.name);
            let kept = running.iter().filter(|_| !whole).filter(named);
            let mut set: Vec<PipelineText> = kept.chain(&texts).cloned().collect();
            set.sort_by(|a, b| a.name.cmp(&b.name));
            set
        };
        let writer = Writer {
            broker: &*broker,
            topics: &topics,
            config: &config,
            output: self.output,
            dry_run: self.dry_run,
            author: &self.author,
        };
        writer.write(|history| Ok((set(history), None)))
    }
}

impl Rollback {
    pub fn run(&self) -> anyhow::Result<()> {
        let (broker, topics, config) = self.fleet.open()?;
        if self.list {
            let history = read(&*broker, &topics)?;
            history
                .versions
                .values()
                .for_each(|applied| self.line(applied, &history));
            return Ok(());
        }
        let writer = Writer {
            broker: &*broker,
            topics: &topics,
            config: &config,
            output: self.output,
            dry_run: false,
            author: &self.author,
        };
        writer.write(|history| {
            let newest = history.newest().map_or(0, |newest| newest.number);
            let wanted = self.version.unwrap_or(newest.saturating_sub(1));
            let known = history.versions.get(&wanted).ok_or_else(|| {
                let what = match self.version {
                    Some(version) => format!("there is no version {version} of the pipelines"),
                    None => "there is no version before the one in force".to_owned(),
                };
                Refused::new(what).help("`homeostat rollback --list` lists the versions there are")
            })?;
            Ok((known.texts.clone(), Some(wanted)))
        })
    }

    fn line(&self, applied: &Applied, history: &History) {
        let names: Vec<&str> = applied.texts.iter().map(|text| text.name.as_str()).collect();
        let in_force = history.newest() == Some(applied);
        let at = protocol::time::to_rfc3339(applied.at_ms);
        if self.output == Output::Json {
            print_json(&json!({
                "version": applied.number, "in_force": in_force, "at": at, "by": applied.by, "reason": applied.reason,
                "restores": applied.restores, "pipelines": names,
            }));
            return;
        }
        let mark = if in_force { '*' } else { ' ' };
        let restores = applied
            .restores
            .map_or(String::new(), |version| format!(", as version {version}"));
        let reason = match applied.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        println!(
            "{mark} {} {at} by {}{restores}{reason} ({})",
            applied.number,
            applied.by,
            names.join(", ")
        );
    }
}

fn read(broker: &dyn Broker, topics: &Topics) -> anyhow::Result<History> {
    let history = History::read(broker, topics).map_err(|error| match error {
        kafka::Error::UnknownTopic(topic) => {
            anyhow::Error::from(Refused::new(format!("there is no topic {topic}")).help(
                "`homeostat run` makes a fleet's topics; topics.prefix in the configuration says which fleet is meant",
            ))
        }
        error => error.into(),
    })?;
    if history.newest().is_none() {
        let refused = Refused::new("no process has run pipelines in this fleet");
        return Err(refused.help("`homeostat run` starts with those of its folder").into());
    }
    Ok(history)
}

/// The pipelines of the version to come, and the earlier version that they are of.
type Wanted = (Vec<PipelineText>, Option<u64>);

/// Writes one version, having said what it changes.
struct Writer<'a> {
    broker: &'a dyn Broker,
    topics: &'a Topics,
    config: &'a Config,
    output: Output,
    dry_run: bool,
    author: &'a Author,
}

impl Writer<'_> {
    fn write(&self, make: impl Fn(&History) -> Result<Wanted, Refused>) -> anyhow::Result<()> {
        let history = read(self.broker, self.topics)?;
        let texts = unmarked(&make(&history)?.0);
        let new = compiled(&texts)?;
        let running = history.newest().map_or(&[][..], |newest| &newest.texts);
        let changes = diff::sets(&compiled(&unmarked(running))?, &new);
        let (version, backfilled) = match versions::are_same(running, &texts) {
            true => (None, Vec::new()),
            false => {
                let planned = versions::plan(&history, texts.clone())?;
                (self.put(&new, &make)?, planned.backfilled)
            }
        };
        self.say(&changes, &backfilled, version, &history);
        Ok(())
    }

    fn put(
        &self,
        new: &Arc<[Pipeline]>,
        make: &dyn Fn(&History) -> Result<Wanted, Refused>,
    ) -> anyhow::Result<Option<u64>> {
        if self.dry_run {
            return Ok(None);
        }
        processor::ensure_named(self.broker, self.topics, self.config, new)?;
        let put = versions::put(self.broker, self.topics, now_ms(), &mut |history| {
            let (texts, restores) = make(history)?;
            if history
                .newest()
                .is_some_and(|newest| versions::are_same(&newest.texts, &texts))
            {
                return Ok(None);
            }
            Ok(Some(Next {
                texts,
                origin: PipelinesOrigin::Operator,
                restores,
                by: self.author.by.clone(),
                reason: self.author.reason.clone(),
            }))
        });
        Ok(put?.written)
    }

    fn say(&self, changes: &[Change], backfilled: &[(String, i64)], version: Option<u64>, history: &History) {
        let in_force = history.newest().map_or(0, |newest| newest.number);
        if self.output == Output::Json {
            let backfilled = backfilled.iter();
            let backfilled = backfilled.map(|(view, ms)| json!({"view": view, "lookback_ms": ms}));
            print_json(&json!({
                "version": version.unwrap_or(in_force), "applied": version.is_some(), "changes": changes,
                "backfilled": backfilled.collect::<Vec<_>>(),
            }));
            return;
        }
        changes
            .iter()
            .filter(|change| !change.is_same())
            .for_each(Change::print);
        for (view, ms) in backfilled {
            println!(
                "view {view} is backfilled: what was read is read again from {} s before the watermark on",
                *ms as f64 / 1_000.0
            );
        }
        match version {
            Some(version) => {
                println!("version {version} is applied; `homeostat rollback` brings back version {in_force}")
            }
            None if self.dry_run => println!("version {in_force} is in force; nothing was applied"),
            None => println!("nothing to apply: version {in_force} is the same"),
        }
    }
}

/// Texts as they are in a folder.
fn unmarked(texts: &[PipelineText]) -> Vec<PipelineText> {
    let mut texts = texts.to_vec();
    texts.iter_mut().for_each(|text| text.begun.clear());
    texts
}

fn compiled(texts: &[PipelineText]) -> Result<Arc<[Pipeline]>, Refused> {
    Compiler.compile(texts).map_err(|wrong| Refused::rendered(&wrong))
}
