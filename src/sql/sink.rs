//! Sinks: what a view, a detector, late rows or dead letters write to a topic.

use engine::spec::{DetectorInput, SinkFormat, SinkInput, SinkSpec};

use crate::{
    ast::{self, SinkWhat},
    detector::Detector,
    diagnostic::{Diagnostic, Span, did_you_mean, one_of},
    source::{self, Source},
    text::Parsed,
    view::View,
};

const OPTIONS: [&str; 3] = ["connector", "topic", "format"];
const FORMATS: [(&str, SinkFormat); 4] = [
    ("json", SinkFormat::Json),
    ("cloudevents", SinkFormat::CloudEvents),
    ("otlp_metrics", SinkFormat::OtlpMetrics),
    ("otlp_metrics_proto", SinkFormat::OtlpMetrics),
];

/// What sinks may be from.
pub(crate) struct Relations<'a> {
    pub sources: &'a [Source],
    pub views: &'a [View],
    pub detectors: &'a [Detector],
    pub failed: Vec<&'a String>,
}

/// Resolves one sink; what is wrong goes to `errors`.
pub(crate) fn resolve(ast: &ast::Sink, relations: &Relations<'_>, errors: &mut Vec<Diagnostic>) -> Option<SinkSpec> {
    let options = Options::read(ast, errors);
    let found = match ast.what {
        SinkWhat::Rows => rows(ast, relations),
        SinkWhat::Late => late(ast, relations),
        SinkWhat::DeadLetters => dead_letters(ast, relations),
    };
    let (input, source, keys) = match found {
        Ok(found) => found?,
        Err(error) => {
            errors.push(error);
            return None;
        }
    };
    let topic = options.topic?;
    if source.is_some_and(|source| reads(relations.sources, source, &topic)) {
        let message = format!("`{}` would read what it writes to `{topic}`", ast.from.text);
        errors.push(Diagnostic::new(message, ast.from.span).help("write to a topic of its own"));
        return None;
    }
    let (format, span) = options.format;
    if format == SinkFormat::OtlpMetrics && ast.what != SinkWhat::Rows {
        let message = "late rows and dead letters are no series: they cannot be metrics";
        errors.push(Diagnostic::new(message, span).help("use 'json' or 'cloudevents'"));
        return None;
    }
    Some(SinkSpec {
        name: ast.name.text.clone(),
        input,
        format,
        topic,
        keys,
    })
}

/// What a sink writes, the source that it comes of, and the columns of its key. `None` where the relation failed.
type Found = Option<(SinkInput, Option<usize>, Vec<(String, usize)>)>;

fn rows(ast: &ast::Sink, relations: &Relations<'_>) -> Parsed<Found> {
    let view = ast.from.find(relations.views.iter().map(|view| view.name.as_str()));
    let detectors = || relations.detectors.iter().map(|detector| detector.spec.name.as_str());
    if let Some(view) = view {
        let of = &relations.views[view];
        let outputs = of.output.fields().iter().enumerate();
        let keys = outputs.filter(|(index, _)| of.key_of_output(*index).is_some());
        let keys = keys.map(|(index, field)| (field.name().clone(), index)).collect();
        return Ok(Some((SinkInput::View(view), Some(of.source), keys)));
    }
    if let Some(detector) = ast.from.find(detectors()) {
        let source = match relations.detectors[detector].spec.input {
            DetectorInput::View(view) => Some(relations.views[view].source),
            DetectorInput::PaneSet(_) => None,
        };
        return Ok(Some((SinkInput::Detector(detector), source, Vec::new())));
    }
    let names = relations.views.iter().map(|view| view.name.as_str());
    unknown(ast, relations, "view or detector", names.chain(detectors()))
}

fn late(ast: &ast::Sink, relations: &Relations<'_>) -> Parsed<Found> {
    let names = || relations.views.iter().map(|view| view.name.as_str());
    match ast.from.find(names()) {
        Some(view) => Ok(Some((
            SinkInput::Late(view),
            Some(relations.views[view].source),
            Vec::new(),
        ))),
        None => unknown(ast, relations, "view", names()),
    }
}

fn dead_letters(ast: &ast::Sink, relations: &Relations<'_>) -> Parsed<Found> {
    let sources = || relations.sources.iter().filter(|source| source.parts.is_empty());
    let names = || sources().map(|source| source.name.as_str());
    match ast.from.find(names()) {
        Some(source) => Ok(Some((SinkInput::DeadLetters(source), Some(source), Vec::new()))),
        None => unknown(ast, relations, "source", names()),
    }
}

fn unknown<'n>(
    ast: &ast::Sink,
    relations: &Relations<'_>,
    what: &str,
    known: impl Iterator<Item = &'n str>,
) -> Parsed<Found> {
    if relations.failed.iter().any(|name| **name == ast.from.text) {
        return Ok(None);
    }
    let message = format!("there is no {what} `{}`", ast.from.text);
    let known: Vec<&str> = known.collect();
    let failed = relations.failed.iter().map(|name| name.as_str());
    let near = did_you_mean(&ast.from.text, known.into_iter().chain(failed));
    Err(Diagnostic::new(message, ast.from.span).help_opt(near))
}

fn reads(sources: &[Source], source: usize, topic: &str) -> bool {
    let mut parts = sources[source].parts.iter();
    sources[source].topic == topic || parts.any(|part| sources[part.source].topic == topic)
}

struct Options {
    topic: Option<String>,
    format: (SinkFormat, Span),
}

impl Options {
    fn read(ast: &ast::Sink, errors: &mut Vec<Diagnostic>) -> Self {
        let mut options = Self {
            topic: None,
            format: (SinkFormat::Json, ast.name.span),
        };
        for setting in &ast.options {
            let result = match setting.key.value.to_ascii_lowercase().as_str() {
                "connector" => source::connector(setting),
                "topic" => source::topic(setting).map(|name| options.topic = Some(name)),
                "format" => format(setting).map(|format| options.format = (format, setting.value.span)),
                key => Err(Diagnostic::new(format!("unknown option `{key}`"), setting.key.span)
                    .help(did_you_mean(key, OPTIONS).unwrap_or_else(|| format!("use {}", one_of(OPTIONS))))),
            };
            errors.extend(result.err());
        }
        if !ast.broken && !source::given(&ast.options, "topic", OPTIONS) {
            let message = format!("sink `{}` has no topic", ast.name.text);
            errors.push(Diagnostic::new(message, ast.name.span).help("add topic = 'features' to WITH (…)"));
        }
        options
    }
}

fn format(setting: &ast::Setting) -> Parsed<SinkFormat> {
    let format = source::text(setting)?;
    let found = FORMATS.iter().find(|(name, _)| format.value.eq_ignore_ascii_case(name));
    found.map(|(_, format)| *format).ok_or_else(|| {
        let names = || FORMATS.map(|(name, _)| name);
        let near = did_you_mean(&format.value, names());
        Diagnostic::new(format!("unknown format `{}` of a sink", format.value), format.span)
            .help(near.unwrap_or_else(|| format!("use {}", one_of(names()))))
    })
}
