//! Pane sets that a version begins anew.
//!
//! A view of other windows needs panes that are gone by now, or that its version before has in part; one of other keys or aggregates
//! needs others. Their sets are begun anew, which makes them sets of their own, with all that was read before in them. The mark is part
//! of the version, so that everybody who compiles it comes to the same sets. What is not edited keeps its panes, whoever began them.

use std::collections::BTreeSet;

use engine::{
    spec::{PaneSetSpec, Pipeline, ViewSpec},
    version::Compile,
};
use protocol::message::PipelineText;

use super::Compiler;
use crate::error::Refused;

/// A set's fingerprint as marks name it.
fn name(set: &PaneSetSpec) -> String {
    format!("{:016x}", set.fingerprint)
}

/// Makes the marked sets of a pipeline sets of their own.
pub(super) fn apply(text: &PipelineText, pipeline: &mut Pipeline) {
    for set in &mut pipeline.pane_sets {
        if let Some(version) = text.begun.get(&name(set)) {
            // Odd, so that no two versions make the same of one fingerprint.
            set.fingerprint ^= version.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// Marks what `texts`, as version `number`, begin anew beside those that run.
pub(super) fn mark(running: &[PipelineText], number: u64, texts: &mut [PipelineText]) -> Result<(), Refused> {
    let (old, new) = (unmarked(running)?, unmarked(texts)?);
    for (text, pipeline) in texts.iter_mut().zip(&new) {
        text.begun.clear();
        if running.is_empty() {
            continue;
        }
        // Its own version first: another pipeline may have the same set, begun at another time.
        let mut before: Vec<(&PipelineText, &Pipeline)> = running.iter().zip(&old).collect();
        before.sort_by_key(|(_, old)| old.name != pipeline.name);
        let has = |set: &PaneSetSpec| {
            let with = |old: &Pipeline| old.pane_sets.iter().any(|other| other.fingerprint == set.fingerprint);
            before.iter().find(|(_, old)| with(old)).map(|(text, _)| *text)
        };
        let own = before
            .first()
            .map(|(_, old)| *old)
            .filter(|old| old.name == pipeline.name);
        let anew = begun_anew(own, pipeline, |set| has(set).is_some());
        for (at, set) in pipeline.pane_sets.iter().enumerate() {
            let kept = || has(set)?.begun.get(&name(set)).copied();
            if let Some(version) = if anew.contains(&at) { Some(number) } else { kept() } {
                text.begun.insert(name(set), version);
            }
        }
    }
    Ok(())
}

/// Pipelines as their texts alone make them.
fn unmarked(texts: &[PipelineText]) -> Result<Vec<Pipeline>, Refused> {
    let plain = texts.iter().cloned().map(|mut text| {
        text.begun.clear();
        text
    });
    let compiled = Compiler.compile(&plain.collect::<Vec<_>>());
    Ok(compiled.map_err(|wrong| Refused::rendered(&wrong))?.to_vec())
}

/// Sets that nobody has, those of edited views, and those that are joined with such.
fn begun_anew(own: Option<&Pipeline>, new: &Pipeline, is_known: impl Fn(&PaneSetSpec) -> bool) -> BTreeSet<usize> {
    let sets = |pipeline: &Pipeline, view: &ViewSpec| -> Vec<u64> {
        let sets = view.pane_sets.iter();
        sets.map(|set| pipeline.pane_sets[*set].fingerprint).collect()
    };
    let is_edited = |view: &ViewSpec| {
        let before = own.and_then(|old| Some((old, old.views.iter().find(|other| other.name == view.name)?)));
        before.is_some_and(|(old, other)| !(sets(old, other) == sets(new, view) && other.window.cuts_as(&view.window)))
    };
    let unknown = (0..new.pane_sets.len()).filter(|set| !is_known(&new.pane_sets[*set]));
    let mut anew: BTreeSet<usize> = unknown.collect();
    let edited = new.views.iter().filter(|view| is_edited(view));
    anew.extend(edited.flat_map(|view| &view.pane_sets));
    loop {
        let before = anew.len();
        for view in &new.views {
            if view.pane_sets.iter().any(|set| anew.contains(set)) {
                anew.extend(&view.pane_sets);
            }
        }
        if anew.len() == before {
            return anew;
        }
    }
}
