//! `homeostat diff`: what keeps its state when one pipeline replaces another, and what starts anew.

use std::{collections::BTreeSet, io::IsTerminal, path::PathBuf};

use engine::spec::{DetectorInput, DetectorSpec, Pipeline, ViewSpec};
use serde::Serialize;

use super::{Output, print_json};
use crate::{pipelines, stages};

/// Says what an edit of a pipeline keeps and what it rebuilds, before it is applied.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat diff running/shop/pipeline.sql pipelines/shop/pipeline.sql")]
pub struct Diff {
    /// The pipeline that runs
    old: PathBuf,
    /// The one to replace it
    new: PathBuf,
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What becomes of one declared thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fate {
    /// Nothing changed.
    Same,
    /// Changed, with its state.
    Keeps,
    /// Starts without state.
    Rebuilds,
    Added,
    Removed,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    kind: &'static str,
    name: String,
    fate: Fate,
    detail: String,
}

impl Diff {
    pub fn run(&self) -> anyhow::Result<()> {
        let read = |path: &PathBuf| {
            let path = if path.is_dir() {
                path.join("pipeline.sql")
            } else {
                path.clone()
            };
            let mut files = [pipelines::read(&path)?];
            // Both are the same pipeline, wherever they lie.
            files[0].name = "pipeline".to_owned();
            pipelines::compile_all(&files, std::io::stderr().is_terminal())
        };
        let (old, new) = (read(&self.old)?, read(&self.new)?);
        for change in changes(&old[0], &new[0]) {
            match self.output {
                Output::Json => print_json(&change),
                Output::Text => change.print(),
            }
        }
        Ok(())
    }
}

impl Change {
    /// For people.
    pub fn print(&self) {
        let sign = match self.fate {
            Fate::Same => '=',
            Fate::Keeps => '~',
            Fate::Rebuilds => '!',
            Fate::Added => '+',
            Fate::Removed => '-',
        };
        println!("{sign} {} {}: {}", self.kind, self.name, self.detail);
    }

    pub fn is_same(&self) -> bool {
        self.fate == Fate::Same
    }
}

/// What becomes of everything in a fleet's pipelines, with the pipeline's name before each.
pub fn sets(old: &[Pipeline], new: &[Pipeline]) -> Vec<Change> {
    let empty = |pipeline: &Pipeline| Pipeline {
        name: pipeline.name.clone(),
        sources: Vec::new(),
        pane_sets: Vec::new(),
        views: Vec::new(),
        detectors: Vec::new(),
        policies: Vec::new(),
        sinks: Vec::new(),
    };
    let names: BTreeSet<&String> = old.iter().chain(new).map(|pipeline| &pipeline.name).collect();
    let mut all = Vec::new();
    for name in names {
        let find = |pipelines: &[Pipeline]| pipelines.iter().find(|pipeline| pipeline.name == *name).cloned();
        let (a, b) = (find(old), find(new));
        let nothing = a.as_ref().or(b.as_ref()).map(empty);
        let (Some(a), Some(b)) = (a.or(nothing.clone()), b.or(nothing)) else {
            continue;
        };
        all.extend(changes(&a, &b).into_iter().map(|change| Change {
            name: format!("{name}.{}", change.name),
            ..change
        }));
    }
    all
}

fn changes(old: &Pipeline, new: &Pipeline) -> Vec<Change> {
    let mut changes = Vec::new();
    compared(
        &mut changes,
        "source",
        &old.sources,
        &new.sources,
        |source| &source.name,
        |old, new| {
            if old.fingerprint == new.fingerprint {
                return (Fate::Same, "reads on where it is".into());
            }
            let detail = "another topic, format, column or watermark: it is read on as another source, beside the old one while windows of that are open";
            (Fate::Rebuilds, detail.into())
        },
    );
    compared(
        &mut changes,
        "view",
        &old.views,
        &new.views,
        |view| &view.name,
        |a, b| view(old, a, new, b),
    );
    compared(
        &mut changes,
        "detector",
        &old.detectors,
        &new.detectors,
        |detector| &detector.name,
        |a, b| detector(old, a, new, b),
    );
    compared(
        &mut changes,
        "policy",
        &old.policies,
        &new.policies,
        |policy| &policy.name,
        |a, b| {
            let detectors = old.detectors[a.detector].name == new.detectors[b.detector].name;
            let mut same = b.clone();
            same.detector = a.detector;
            if detectors && format!("{a:?}") == format!("{same:?}") {
                return (Fate::Same, "nothing changed".into());
            }
            let detail = "holds from the next window on; open episodes, cooldowns and limits stay";
            (Fate::Keeps, detail.into())
        },
    );
    changes
}

/// Pairs what has the same name, old ones first in their order.
fn compared<T>(
    changes: &mut Vec<Change>,
    kind: &'static str,
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> &String,
    fate: impl Fn(&T, &T) -> (Fate, String),
) {
    let names: BTreeSet<&String> = old.iter().chain(new).map(&name).collect();
    for of in names {
        let find = |list: &'_ [T]| list.iter().position(|one| name(one) == of);
        let (fate, detail) = match (find(old), find(new)) {
            (Some(a), Some(b)) => fate(&old[a], &new[b]),
            (None, _) => (Fate::Added, "starts without state".to_owned()),
            (_, None) => (Fate::Removed, "its state is forgotten".to_owned()),
        };
        changes.push(Change {
            kind,
            name: of.clone(),
            fate,
            detail,
        });
    }
}

fn view(old: &Pipeline, a: &ViewSpec, new: &Pipeline, b: &ViewSpec) -> (Fate, String) {
    let panes = |pipeline: &Pipeline, view: &ViewSpec| -> Vec<u64> {
        let sets = view.pane_sets.iter();
        sets.map(|set| pipeline.pane_sets[*set].fingerprint).collect()
    };
    if panes(old, a) != panes(new, b) {
        let detail = "source, WHERE, GROUP BY, aggregates or the width of its panes changed: what was read is read again for it beside the old one, then it takes over at a common end";
        return (Fate::Rebuilds, detail.into());
    }
    if a.window != b.window {
        return (
            Fate::Keeps,
            "other windows: what was read is read again for them, then they take over from the old ones at a common end".into(),
        );
    }
    let shown = |view: &ViewSpec| {
        let having = view.having.as_ref().map(ToString::to_string);
        let select: Vec<String> = view.projection.iter().map(ToString::to_string).collect();
        format!(
            "{select:?} {having:?} {} {:?} {:?}",
            view.fill_missing_windows, view.output, view.judged
        )
    };
    if shown(a) != shown(b) {
        return (Fate::Keeps, "SELECT or HAVING changed; panes and windows stay".into());
    }
    (Fate::Same, "nothing changed".into())
}

fn detector(old: &Pipeline, a: &DetectorSpec, new: &Pipeline, b: &DetectorSpec) -> (Fate, String) {
    let names = |columns: &[(String, usize)]| columns.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if a.using != b.using || names(&a.features) != names(&b.features) || names(&a.keys) != names(&b.keys) {
        return (
            Fate::Rebuilds,
            "another algorithm, KEY or FEATURES: it learns anew".into(),
        );
    }
    if let (DetectorInput::View(from), DetectorInput::View(to)) = (a.input, b.input)
        && view(old, &old.views[from], new, &new.views[to]).0 == Fate::Rebuilds
    {
        return (
            Fate::Keeps,
            "keeps what it learned; goes over when its view does".into(),
        );
    }
    if a.options == b.options {
        return (Fate::Same, "keeps what it learned".into());
    }
    match takes_over(a, b) {
        true => (Fate::Keeps, "other options; keeps what it learned".into()),
        false => (
            Fate::Rebuilds,
            "other options, with which it learns anew; its alarms stay".into(),
        ),
    }
}

/// Whether the new detector reads a state that the old one wrote.
fn takes_over(old: &DetectorSpec, new: &DetectorSpec) -> bool {
    let build = |spec: &DetectorSpec| {
        let features: Vec<String> = spec.features.iter().map(|(name, _)| name.clone()).collect();
        detector::build(&spec.using, &stages::values(&spec.options), &features)
    };
    let (Ok(old), Ok(new)) = (build(old), build(new)) else {
        return false;
    };
    let mut snapshot = Vec::new();
    old.fresh(0).snapshot(&mut snapshot);
    new.restore(0, &snapshot).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
          WITH (topic = 'app', format = 'json');
        CREATE FEATURE VIEW v AS SELECT service, window_end, avg(ms) AS a FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY service, window_end;
        CREATE DETECTOR d ON v FEATURES (a) USING static_threshold WITH (upper = 5);
        CREATE POLICY p ON d DO ACTION 'restart';";

    fn fates(from: &str, to: &str) -> Vec<(&'static str, Fate)> {
        let compile = |text: &str| sql::compile("p", text, &pipelines::Detectors).unwrap();
        let edited = BASE.replace(from, to);
        assert!(from.is_empty() || edited != BASE, "{from}");
        let changes = changes(&compile(BASE), &compile(&edited));
        changes.into_iter().map(|change| (change.kind, change.fate)).collect()
    }

    #[test]
    fn an_edit_keeps_what_it_does_not_touch() {
        use Fate::*;
        let all = |source, view, detector, policy| {
            vec![
                ("source", source),
                ("view", view),
                ("detector", detector),
                ("policy", policy),
            ]
        };
        assert_eq!(fates("", ""), all(Same, Same, Same, Same));
        assert_eq!(fates("upper = 5", "upper = 6"), all(Same, Same, Keeps, Same));
        assert_eq!(fates("'restart'", "'restart' MODE AUTO"), all(Same, Same, Same, Keeps));
        assert_eq!(
            fates("window_end, avg", "window_end, 2 * avg"),
            all(Same, Keeps, Same, Same)
        );
        assert_eq!(fates("avg(ms)", "max(ms)"), all(Same, Rebuilds, Keeps, Same));
        assert_eq!(fates("'5' SECOND", "'6' SECOND"), all(Rebuilds, Rebuilds, Keeps, Same));
        assert_eq!(
            fates("USING static_threshold WITH (upper = 5)", "USING robust_zscore"),
            all(Same, Same, Rebuilds, Same)
        );
    }
}
