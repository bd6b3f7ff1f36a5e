//! Sinks: what a view or a detector writes to a topic.

use engine::spec::{DetectorInput, SinkInput, SinkSpec};

use crate::{
    ast,
    detector::Detector,
    diagnostic::{Diagnostic, did_you_mean, one_of},
    source::{self, Source},
    view::View,
};

const OPTIONS: [&str; 3] = ["connector", "topic", "format"];

/// What sinks may be from.
pub(crate) struct Relations<'a> {
    pub sources: &'a [Source],
    pub views: &'a [View],
    pub detectors: &'a [Detector],
    pub failed: Vec<&'a String>,
}

/// Resolves one sink; what is wrong goes to `errors`.
pub(crate) fn resolve(ast: &ast::Sink, relations: &Relations<'_>, errors: &mut Vec<Diagnostic>) -> Option<SinkSpec> {
    let topic = options(ast, errors);
    let view = ast.from.find(relations.views.iter().map(|view| view.name.as_str()));
    let detectors = || relations.detectors.iter().map(|detector| detector.spec.name.as_str());
    let (input, source, keys) = match (view, ast.from.find(detectors())) {
        (Some(view), _) => {
            let of = &relations.views[view];
            let outputs = of.output.fields().iter().enumerate();
            let keys = outputs.filter(|(index, _)| of.key_of_output(*index).is_some());
            let keys = keys.map(|(index, field)| (field.name().clone(), index)).collect();
            (SinkInput::View(view), Some(of.source), keys)
        }
        (None, Some(detector)) => {
            let source = match relations.detectors[detector].spec.input {
                DetectorInput::View(view) => Some(relations.views[view].source),
                DetectorInput::PaneSet(_) => None,
            };
            (SinkInput::Detector(detector), source, Vec::new())
        }
        (None, None) if relations.failed.iter().any(|name| **name == ast.from.text) => return None,
        (None, None) => {
            let message = format!("there is no view or detector `{}`", ast.from.text);
            let names = relations.views.iter().map(|view| view.name.as_str());
            let near = did_you_mean(&ast.from.text, names.chain(detectors()));
            errors.push(Diagnostic::new(message, ast.from.span).help_opt(near));
            return None;
        }
    };
    let topic = topic?;
    if source.is_some_and(|source| reads(relations.sources, source, &topic)) {
        let message = format!("`{}` would read what it writes to `{topic}`", ast.from.text);
        errors.push(Diagnostic::new(message, ast.from.span).help("write to a topic of its own"));
        return None;
    }
    Some(SinkSpec {
        name: ast.name.text.clone(),
        input,
        topic,
        keys,
    })
}

fn reads(sources: &[Source], source: usize, topic: &str) -> bool {
    let mut parts = sources[source].parts.iter();
    sources[source].topic == topic || parts.any(|part| sources[part.source].topic == topic)
}

/// The topic.
fn options(ast: &ast::Sink, errors: &mut Vec<Diagnostic>) -> Option<String> {
    let mut topic = None;
    for setting in &ast.options {
        let result = match setting.key.value.to_ascii_lowercase().as_str() {
            "connector" => source::connector(setting),
            "topic" => source::topic(setting).map(|name| topic = Some(name)),
            "format" => source::text(setting).and_then(|format| match format.value.eq_ignore_ascii_case("json") {
                true => Ok(()),
                false => Err(
                    Diagnostic::new(format!("unknown format `{}` of a sink", format.value), format.span)
                        .help("use 'json'"),
                ),
            }),
            key => Err(Diagnostic::new(format!("unknown option `{key}`"), setting.key.span)
                .help(did_you_mean(key, OPTIONS).unwrap_or_else(|| format!("use {}", one_of(OPTIONS))))),
        };
        errors.extend(result.err());
    }
    if !ast
        .options
        .iter()
        .any(|setting| setting.key.value.eq_ignore_ascii_case("topic"))
    {
        let message = format!("sink `{}` has no topic", ast.name.text);
        errors.push(Diagnostic::new(message, ast.name.span).help("add topic = 'features' to WITH (…)"));
    }
    topic
}
