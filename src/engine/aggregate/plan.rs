//! What all pipelines together ask of the source topics: each source decoded once, each pane set kept once.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::Schema;
use datafusion::physical_expr::{PhysicalExpr, utils::reassign_expr_columns};

use super::metadata;
use crate::{
    error::Error,
    spec::{PaneSetSpec, Pipeline, SourceSpec},
    table,
};

/// One source with the union of the columns that pipelines use, and its pane sets over them.
pub struct SourcePlan {
    pub spec: SourceSpec,
    /// `pipeline.source` of the first pipeline that declares it.
    pub name: String,
    pub sets: Vec<PaneSetSpec>,
}

/// The sources by fingerprint. Equal fingerprints of several pipelines become one source and one set.
pub fn plan(pipelines: &[Pipeline]) -> Result<Vec<SourcePlan>, Error> {
    let mut plans: BTreeMap<u64, SourcePlan> = BTreeMap::new();
    for (pipeline, source) in pipelines.iter().flat_map(|p| p.sources.iter().map(move |s| (p, s))) {
        match plans.get_mut(&source.fingerprint) {
            Some(plan) => widen(&mut plan.spec, source)?,
            None => {
                let plan = SourcePlan {
                    spec: source.clone(),
                    name: format!("{}.{}", pipeline.name, source.name),
                    sets: Vec::new(),
                };
                plans.insert(source.fingerprint, plan);
            }
        }
    }
    for pipeline in pipelines {
        for set in &pipeline.pane_sets {
            let source = pipeline.sources.get(set.source).ok_or_else(|| Error::Shape {
                what: "pane set",
                expected: format!("a source of pipeline {}", pipeline.name),
                found: format!("source {}", set.source),
            })?;
            if let Some(plan) = plans.get_mut(&source.fingerprint) {
                add_set(plan, set)?;
            }
        }
    }
    let plans: Vec<SourcePlan> = plans.into_values().filter(|plan| !plan.sets.is_empty()).collect();
    check_metadata(&plans)?;
    check_tables(&plans)?;
    Ok(plans)
}

/// Whether some view is over both, be it in two versions.
pub fn shares_a_view(a: &PaneSetSpec, b: &PaneSetSpec) -> bool {
    let mut windows = a.windows.iter();
    windows.any(|window| b.windows.iter().any(|other| other.view == window.view))
}

/// How far behind the watermark the first window begins that the set's views may have to close when they take over from other versions: a
/// version before leaves at most its last window unclosed.
pub fn lookback_ms(set: &PaneSetSpec, sources: &[SourcePlan]) -> i64 {
    let sets = sources.iter().flat_map(|source| &source.sets);
    let windows = sets.flat_map(|set| &set.windows);
    let reach = set.windows.iter().map(|window| {
        let versions = windows.clone().filter(|other| other.view == window.view);
        let left = versions.map(|other| other.slide_ms + other.lateness_ms).max();
        window.size_ms + left.unwrap_or_default()
    });
    reach.max().unwrap_or_default()
}

/// The views over a set, for people.
pub fn views_of(source: &SourcePlan, set: u64) -> String {
    let set = source.sets.iter().find(|other| other.fingerprint == set);
    let views = set.into_iter().flat_map(|set| &set.windows);
    let names: std::collections::BTreeSet<&str> = views.map(|window| window.view.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Adds the columns that only `other` uses.
fn widen(spec: &mut SourceSpec, other: &SourceSpec) -> Result<(), Error> {
    let mut fields: Vec<_> = spec.schema.fields().iter().cloned().collect();
    spec.paths.resize(fields.len(), None);
    for (index, field) in other.schema.fields().iter().enumerate() {
        if let Some(known) = fields.iter().find(|known| known.name() == field.name()) {
            if known != field {
                return Err(Error::Shape {
                    what: "column of a source that several pipelines declare",
                    expected: format!("{known:?}"),
                    found: format!("{field:?}"),
                });
            }
            continue;
        }
        let metadata = other.metadata.iter().find(|(column, _)| *column == index);
        spec.metadata.extend(metadata.map(|(_, what)| (fields.len(), *what)));
        fields.push(Arc::clone(field));
        spec.paths.push(other.paths.get(index).cloned().flatten());
    }
    spec.schema = Arc::new(Schema::new(fields));
    Ok(())
}

fn add_set(plan: &mut SourcePlan, set: &PaneSetSpec) -> Result<(), Error> {
    if let Some(known) = plan.sets.iter_mut().find(|known| known.fingerprint == set.fingerprint) {
        for window in &set.windows {
            if !known.windows.contains(window) {
                known.windows.push(window.clone());
            }
        }
        return Ok(());
    }
    let schema = &plan.spec.schema;
    let over = |expression: &mut Arc<dyn PhysicalExpr>| -> Result<(), Error> {
        *expression = reassign_expr_columns(Arc::clone(expression), schema)?;
        Ok(())
    };
    let mut set = set.clone();
    set.filter.iter_mut().try_for_each(over)?;
    set.keys.iter_mut().try_for_each(over)?;
    for aggregate in &mut set.aggregates {
        aggregate.args.iter_mut().try_for_each(over)?;
        aggregate.filter.iter_mut().try_for_each(over)?;
    }
    plan.sets.push(set);
    Ok(())
}

/// A record of a table is read by every instance, a record of a source by one of them.
fn check_tables(plans: &[SourcePlan]) -> Result<(), Error> {
    for table in plans.iter().flat_map(|plan| &plan.sets).flat_map(table::tables_of) {
        if let Some(plan) = plans.iter().find(|plan| plan.spec.topic == table.source.topic) {
            return Err(Error::Shape {
                what: "topic",
                expected: format!("{} to be table {} only", table.source.topic, table.name),
                found: format!("source {}", plan.name),
            });
        }
    }
    Ok(())
}

/// Where every source and set of a topic stands has to fit into one partition's commit metadata.
fn check_metadata(plans: &[SourcePlan]) -> Result<(), Error> {
    let mut topics: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for plan in plans {
        let (sources, sets) = topics.entry(&plan.spec.topic).or_default();
        *sources += 1;
        *sets += plan.sets.len();
    }
    for (topic, (sources, sets)) in topics {
        if !metadata::fits(sources, sets) {
            return Err(Error::TooManySets {
                topic: topic.to_owned(),
                sources,
                sets,
                bytes_max: metadata::BYTES_MAX,
            });
        }
    }
    Ok(())
}
