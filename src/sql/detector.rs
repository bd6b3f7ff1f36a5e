//! Detectors: columns found, options checked by whoever knows the algorithms.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::DataType;
use datafusion::{common::Column, logical_expr::Expr};
use engine::spec::{DetectorInput, DetectorSpec, OptionValue};

use crate::{
    DetectorCatalog,
    ast::{self, Setting},
    diagnostic::{Diagnostic, Span, did_you_mean},
    duration,
    pane_set::{PaneSet, silence},
    source::{self, Source},
    text::Name,
    view::{Key, View, canonical},
};

/// The algorithm that watches for the absence of rows.
const SILENCE: &str = "silence";
const SILENCE_TIMEOUT_MS: i64 = 30_000;

/// Names that a help lists.
const KNOWN_MAX: usize = 40;

/// What detectors may be declared on.
pub(crate) struct Relations<'a> {
    pub sources: &'a [Source],
    pub views: &'a [View],
    pub failed: &'a [String],
    /// Columns of failed views, where they are known.
    pub outputs: &'a BTreeMap<String, Vec<String>>,
}

/// A resolved detector, and what its policies need to know.
pub(crate) struct Detector {
    pub spec: DetectorSpec,
    /// Slide of its windows, or the timeout of `silence`.
    pub step_ms: i64,
    /// Columns that a policy may name: name, type, index.
    pub columns: Vec<(String, DataType, usize)>,
    /// Columns that policies do name.
    pub used: BTreeMap<String, usize>,
}

/// Resolves one detector. `silence` gets a pane set of its own, appended to `sets`.
pub(crate) fn resolve(
    ast: &ast::Detector,
    relations: &Relations<'_>,
    sets: &mut Vec<PaneSet>,
    catalog: &dyn DetectorCatalog,
    errors: &mut Vec<Diagnostic>,
) -> Option<Detector> {
    let options: Vec<(String, OptionValue)> = ast
        .options
        .iter()
        .map(|option| (option.key.value.clone(), option.value.value.clone()))
        .collect();
    let using = check(ast, &options, catalog, errors);
    let step_ms = (using == SILENCE).then(|| timeout_ms(&ast.options, errors));
    if relations.failed.contains(&ast.on.text) {
        check_names(ast, relations.outputs.get(&ast.on.text), errors);
        return None;
    }
    let view = ast.on.find(relations.views.iter().map(|view| view.name.as_str()));
    let source = source::find(relations.sources, &ast.on);
    let mut detector = match (view, source) {
        (Some(index), _) if using == SILENCE => on_silent_view(ast, &relations.views[index], relations, sets, errors),
        (Some(index), _) => on_view(ast, index, &relations.views[index], errors),
        (None, Some(index)) if using == SILENCE => on_source(ast, index, relations, sets, errors),
        (None, Some(_)) => {
            errors.push(
                Diagnostic::new(
                    format!("`{using}` needs windows: only `{SILENCE}` watches a source itself"),
                    ast.on.span,
                )
                .help("create a feature view over the source and watch that"),
            );
            None
        }
        (None, None) => {
            let views = relations.views.iter().map(|view| view.name.as_str());
            let known = views.chain(relations.sources.iter().map(|source| source.name.as_str()));
            let known = known.chain(relations.failed.iter().map(String::as_str));
            errors.push(
                Diagnostic::new(format!("unknown view or source `{}`", ast.on.text), ast.on.span)
                    .help_opt(did_you_mean(&ast.on.text, known)),
            );
            None
        }
    }?;
    detector.spec.using = using;
    detector.spec.options = options;
    detector.step_ms = step_ms.unwrap_or(detector.step_ms);
    // One with mistakes still has columns that its policies are checked against.
    Some(detector)
}

/// Everything that the catalog has against a detector; the algorithm, or the one that is meant.
fn check(
    ast: &ast::Detector,
    options: &[(String, OptionValue)],
    catalog: &dyn DetectorCatalog,
    errors: &mut Vec<Diagnostic>,
) -> String {
    let mut using = ast.using.text.to_ascii_lowercase();
    let mut options = options.to_vec();
    while let Err(error) = catalog.check(&using, &options, ast.features.len()) {
        let (option, suggestion) = (error.option.clone(), error.suggestion.clone());
        let count = options.len();
        let given = option
            .as_ref()
            .is_some_and(|option| options.iter().any(|(name, _)| name == option));
        // What is missing may have been left out for a mistake.
        if given || suggestion.is_some() || (!ast.broken && count == ast.options.len()) {
            errors.push(catalog_error(error, ast));
        }
        options.retain(|(name, _)| option.as_ref() != Some(name));
        match suggestion.filter(|_| option.is_none()) {
            Some(meant) if meant != using => using = meant,
            _ if options.len() < count => {}
            _ => break,
        }
    }
    using
}

fn catalog_error(error: crate::CatalogError, ast: &ast::Detector) -> Diagnostic {
    let option = ast
        .options
        .iter()
        .find(|option| Some(&option.key.value) == error.option.as_ref());
    let span = option.map_or(ast.using.span, |option| option.key.span);
    let names = error.known.iter().map(String::as_str).take(KNOWN_MAX);
    let list = (!error.known.is_empty()).then(|| format!("there are {}", names.collect::<Vec<_>>().join(", ")));
    let help = error.suggestion.map(|name| format!("did you mean `{name}`?")).or(list);
    // Said once: as help, where it comes with the message, too.
    let cut = |hint| error.message.split_once(hint).map(|(message, _)| message.to_owned());
    let message = match &help {
        Some(_) => cut("; did you mean").or_else(|| cut("; there are")),
        None => None,
    };
    let message = message.unwrap_or(error.message);
    Diagnostic::new(message, span).help_opt(help)
}

fn timeout_ms(options: &[Setting], errors: &mut Vec<Diagnostic>) -> i64 {
    let Some(timeout) = options.iter().find(|option| option.key.value == "timeout") else {
        return SILENCE_TIMEOUT_MS;
    };
    let ms = match &timeout.value.value {
        OptionValue::Text(text) => duration::parse(text),
        OptionValue::Number(seconds) if *seconds > 0.0 && *seconds < 1e8 => Ok((seconds * 1_000.0) as i64),
        _ => Err("a timeout is a length of time".into()),
    };
    match ms {
        Ok(ms) if ms > 0 => ms,
        Ok(_) => {
            errors.push(Diagnostic::new(
                "a timeout must be longer than zero",
                timeout.value.span,
            ));
            SILENCE_TIMEOUT_MS
        }
        Err(reason) => {
            errors.push(Diagnostic::new(reason, timeout.value.span).help("write timeout = '30 s'"));
            SILENCE_TIMEOUT_MS
        }
    }
}

fn spec(ast: &ast::Detector, input: DetectorInput, keys: Vec<(String, usize)>) -> DetectorSpec {
    DetectorSpec {
        name: ast.name.text.clone(),
        input,
        keys,
        features: Vec::new(),
        using: String::new(),
        options: Vec::new(),
        columns: Vec::new(),
    }
}

fn on_view(ast: &ast::Detector, index: usize, view: &View, errors: &mut Vec<Diagnostic>) -> Option<Detector> {
    if view.judged.is_some() {
        let message = format!("`{}` is judged already, by ML_DETECT_ANOMALIES", view.name);
        errors.push(Diagnostic::new(message, ast.on.span).help("put the detector on the view that it reads"));
        return None;
    }
    let keys = view_keys(ast, view, errors);
    let mut features = Vec::new();
    for name in &ast.features {
        let Some(output) = find_output(view, name, errors) else {
            continue;
        };
        let field = view.output.field(output);
        if !field.data_type().is_numeric() {
            errors.push(
                Diagnostic::new(
                    format!(
                        "feature `{}` is a {}, not a number",
                        field.name(),
                        type_name(field.data_type())
                    ),
                    name.span,
                )
                .help("use an aggregate such as count(*), or CASE WHEN … THEN 1 ELSE 0 END"),
            );
            continue;
        }
        if features.iter().any(|(_, other)| *other == output) {
            errors.push(Diagnostic::new(
                format!("feature `{}` is given twice", field.name()),
                name.span,
            ));
        }
        features.push((field.name().clone(), output));
    }
    for reserved in ["score", "is_anomaly"] {
        if view.output.fields().iter().any(|field| field.name() == reserved) {
            errors.push(
                Diagnostic::new(
                    format!(
                        "view `{}` has a column `{reserved}`, which is what detectors say",
                        view.name
                    ),
                    ast.on.span,
                )
                .help("give the column another name in the view"),
            );
        }
    }
    let mut spec = spec(ast, DetectorInput::View(index), keys?);
    spec.features = features;
    let fields = view.output.fields().iter().enumerate();
    Some(Detector {
        spec,
        step_ms: view.window.slide_ms,
        columns: fields
            .map(|(output, field)| (field.name().clone(), field.data_type().clone(), output))
            .collect(),
        used: BTreeMap::new(),
    })
}

fn find_output(view: &View, name: &Name, errors: &mut Vec<Diagnostic>) -> Option<usize> {
    let known: Vec<&str> = view.output.fields().iter().map(|field| field.name().as_str()).collect();
    find_name(&view.name, &known, name, errors)
}

fn find_name(view: &str, known: &[&str], name: &Name, errors: &mut Vec<Diagnostic>) -> Option<usize> {
    let found = name.find(known.iter().copied());
    if found.is_none() {
        let help = did_you_mean(&name.text, known.iter().copied());
        errors.push(
            Diagnostic::new(format!("view `{view}` has no column `{}`", name.text), name.span)
                .help(help.unwrap_or_else(|| format!("it has {}", known.join(", ")))),
        );
    }
    found
}

/// Whether a view that is wrong would have the columns that a detector names.
fn check_names(ast: &ast::Detector, outputs: Option<&Vec<String>>, errors: &mut Vec<Diagnostic>) {
    let Some(outputs) = outputs else { return };
    let known: Vec<&str> = outputs.iter().map(String::as_str).collect();
    for name in ast.key.iter().flatten().chain(&ast.features) {
        find_name(&ast.on.text, &known, name, errors);
    }
}

/// KEY: exactly the grouping columns of the view, each with its index in the view's output.
fn view_keys(ast: &ast::Detector, view: &View, errors: &mut Vec<Diagnostic>) -> Option<Vec<(String, usize)>> {
    let name = |output: usize| view.output.field(output).name().clone();
    let output_of = |key: usize| (0..view.projection.len()).find(|output| view.key_of_output(*output) == Some(key));
    let Some(names) = &ast.key else {
        let outputs: Option<Vec<usize>> = (0..view.keys.len()).map(output_of).collect();
        let Some(outputs) = outputs else {
            errors.push(
                Diagnostic::new(
                    format!("view `{}` does not select every column that it groups by", view.name),
                    ast.on.span,
                )
                .help("add the missing ones to its SELECT"),
            );
            return None;
        };
        return Some(outputs.into_iter().map(|output| (name(output), output)).collect());
    };
    let before = errors.len();
    let mut keys: Vec<(String, usize)> = Vec::new();
    let mut covered = Vec::new();
    for key in names {
        let Some(output) = find_output(view, key, errors) else {
            continue;
        };
        match view.key_of_output(output) {
            Some(index) if covered.contains(&index) => {
                errors.push(Diagnostic::new(format!("key `{}` is given twice", key.text), key.span));
            }
            Some(index) => {
                covered.push(index);
                keys.push((name(output), output));
            }
            None => {
                errors.push(
                    Diagnostic::new(
                        format!("`{}` is not a grouping column of view `{}`", key.text, view.name),
                        key.span,
                    )
                    .help(grouping_columns(view)),
                );
            }
        }
    }
    let missing: Vec<&str> = (0..view.keys.len())
        .filter(|index| !covered.contains(index))
        .map(|index| view.keys[index].field.name().as_str())
        .collect();
    if errors.len() == before && !missing.is_empty() {
        let span = names
            .iter()
            .map(|name| name.span)
            .reduce(Span::to)
            .unwrap_or(ast.name.span);
        errors.push(
            Diagnostic::new(
                format!(
                    "KEY leaves out `{}`, so one key would have several rows per window",
                    missing.join("`, `")
                ),
                span,
            )
            .help(grouping_columns(view)),
        );
    }
    (errors.len() == before).then_some(keys)
}

fn grouping_columns(view: &View) -> String {
    let names: Vec<&str> = view.keys.iter().map(|key| key.field.name().as_str()).collect();
    if names.is_empty() {
        return "the view groups by its window only: leave KEY out".into();
    }
    format!("it groups by {}", names.join(", "))
}

/// `silence` on a view watches the rows that the view is made of.
fn on_silent_view(
    ast: &ast::Detector,
    view: &View,
    relations: &Relations<'_>,
    sets: &mut Vec<PaneSet>,
    errors: &mut Vec<Diagnostic>,
) -> Option<Detector> {
    let keys = view_keys(ast, view, errors)?;
    let keys = keys
        .into_iter()
        .filter_map(|(name, output)| Some((name, view.key_of_output(output)?)))
        .collect();
    let declared = &relations.sources[view.source];
    one_source(ast, declared, errors)?;
    let set = silence(view.source, declared, view.filter.clone(), view.keys.clone());
    silent(ast, set, keys, sets, errors)
}

/// Silence is told by the progress of one source.
fn one_source(ast: &ast::Detector, source: &Source, errors: &mut Vec<Diagnostic>) -> Option<()> {
    if source.parts.len() <= 1 {
        return Some(());
    }
    let message = format!("`{SILENCE}` watches the rows of one source, not a UNION ALL");
    errors.push(Diagnostic::new(message, ast.on.span).help("watch each of its sources with a detector of its own"));
    None
}

fn on_source(
    ast: &ast::Detector,
    index: usize,
    relations: &Relations<'_>,
    sets: &mut Vec<PaneSet>,
    errors: &mut Vec<Diagnostic>,
) -> Option<Detector> {
    let declared = &relations.sources[index];
    one_source(ast, declared, errors)?;
    let Some(names) = ast.key.as_ref().filter(|names| !names.is_empty()) else {
        errors.push(
            Diagnostic::new("a detector on a source needs KEY: whose silence it is", ast.on.span)
                .help(format!("write ON {} KEY (service)", declared.name)),
        );
        return None;
    };
    let before = errors.len();
    let mut keys: Vec<Key> = Vec::new();
    let mut open = declared.unknown.event_time;
    for name in names {
        let Some(column) = name.find(declared.column_names()) else {
            if declared.unknown.may_be(&name.text) {
                open = true;
                continue;
            }
            errors.push(
                Diagnostic::new(
                    format!("source `{}` has no column `{}`", declared.name, name.text),
                    name.span,
                )
                .help_opt(did_you_mean(&name.text, declared.column_names())),
            );
            continue;
        };
        let field = &declared.columns[column].field;
        if field.data_type().is_nested() {
            errors.push(Diagnostic::new(
                format!("`{}` is a map, not a key", name.text),
                name.span,
            ));
            continue;
        }
        if keys.iter().any(|key| key.field.name() == field.name()) {
            errors.push(Diagnostic::new(
                format!("key `{}` is given twice", name.text),
                name.span,
            ));
            continue;
        }
        keys.push(Key {
            expr: Expr::Column(Column::from_name(field.name().clone())),
            field: Arc::new(field.clone().with_metadata(Default::default())),
        });
    }
    if errors.len() > before || open {
        return None;
    }
    let written: Vec<String> = keys.iter().map(|key| key.field.name().clone()).collect();
    keys.sort_by(|a, b| a.field.name().cmp(b.field.name()));
    let indexed = written
        .into_iter()
        .filter_map(|name| {
            let index = keys.iter().position(|key| *key.field.name() == name)?;
            Some((name, index))
        })
        .collect();
    let set = silence(index, declared, None, keys);
    silent(ast, set, indexed, sets, errors)
}

fn silent(
    ast: &ast::Detector,
    set: datafusion::common::Result<PaneSet>,
    keys: Vec<(String, usize)>,
    sets: &mut Vec<PaneSet>,
    errors: &mut Vec<Diagnostic>,
) -> Option<Detector> {
    let set = match set {
        Ok(set) => set,
        Err(error) => {
            errors.push(Diagnostic::new(error.message().into_owned(), ast.span));
            return None;
        }
    };
    let columns = keys
        .iter()
        .map(|(name, index)| (name.clone(), set.keys[*index].field.data_type().clone(), *index))
        .collect();
    let index = sets.iter().position(|other| equal(other, &set)).unwrap_or_else(|| {
        sets.push(set);
        sets.len() - 1
    });
    Some(Detector {
        spec: spec(ast, DetectorInput::PaneSet(index), keys),
        step_ms: SILENCE_TIMEOUT_MS,
        columns,
        used: BTreeMap::new(),
    })
}

fn equal(a: &PaneSet, b: &PaneSet) -> bool {
    a.source == b.source
        && a.windows.is_empty()
        && a.filter.as_ref().map(canonical) == b.filter.as_ref().map(canonical)
        && a.keys.len() == b.keys.len()
        && a.keys
            .iter()
            .zip(&b.keys)
            .all(|(a, b)| canonical(&a.expr) == canonical(&b.expr))
}

/// As an operator would say it.
pub(crate) fn type_name(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Dictionary(..) | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Timestamp(..) => "timestamp",
        DataType::Boolean => "boolean",
        DataType::Map(..) => "map",
        DataType::List(..) => "list",
        other if other.is_numeric() => "number",
        _ => "value of another type",
    }
}
