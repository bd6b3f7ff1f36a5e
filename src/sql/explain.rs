//! A plan in words: what is read, what is shared, and how much is held at most.

use std::fmt::Write;

use arrow::datatypes::FieldRef;
use engine::assemble::SESSION_PANES_MAX;
use engine::spec::{
    ActionSpec, AggregateKind, AggregateSpec, Beyond, Budget, DetectorInput, DetectorSpec, OptionValue, PaneSetSpec,
    Pipeline, PolicySpec, SinkFormat, SinkInput, SinkSpec, SourceSpec, StartupMode, ViewSpec, WindowSpec,
};

use engine::table::{TableSpec, tables};

use crate::{duration::display, source::telemetry_format};

/// The plan of a pipeline, for people.
pub fn explain(pipeline: &Pipeline) -> String {
    let mut out = format!("pipeline {}\n", pipeline.name);
    for source in &pipeline.sources {
        explain_source(&mut out, source);
    }
    for table in tables(pipeline) {
        explain_table(&mut out, &table);
    }
    for (index, set) in pipeline.pane_sets.iter().enumerate() {
        explain_pane_set(&mut out, pipeline, index, set);
    }
    for view in &pipeline.views {
        explain_view(&mut out, pipeline, view);
    }
    for detector in &pipeline.detectors {
        explain_detector(&mut out, pipeline, detector);
    }
    for policy in &pipeline.policies {
        explain_policy(&mut out, pipeline, policy);
    }
    for sink in &pipeline.sinks {
        explain_sink(&mut out, pipeline, sink);
    }
    out
}

/// Writing to a string cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => {{
        let _ = writeln!($out, $($arg)*);
    }};
}

fn explain_source(out: &mut String, source: &SourceSpec) {
    let start = match source.start {
        StartupMode::GroupOffsets => "the group's offsets".to_owned(),
        StartupMode::Earliest => "the earliest record".to_owned(),
        StartupMode::Latest => "the latest record".to_owned(),
        StartupMode::TimestampMs(ms) => format!("time {ms} ms"),
    };
    line!(out, "\nsource {}  [{:016x}]", source.name, source.fingerprint);
    line!(
        out,
        "  topic {}, {}, first start from {start}",
        source.topic,
        telemetry_format(source.format)
    );
    let idle = source
        .idle_timeout_ms
        .map_or("never idle".into(), |ms| format!("idle after {}", display(ms)));
    line!(
        out,
        "  event time {}, delay {}, {idle}, at most {} ahead of the broker, drift {}",
        source.schema.field(source.event_time).name(),
        display(source.delay_ms),
        display(source.max_future_skew_ms),
        display(source.max_drift_ms),
    );
    explain_columns(out, source);
}

fn explain_table(out: &mut String, table: &TableSpec) {
    let source = &table.source;
    line!(out, "\ntable {}  [{:016x}]", table.name, source.fingerprint);
    line!(out, "  topic {}, read whole by every instance", source.topic);
    let name = |column: &usize| source.schema.field(*column).name().as_str();
    let key: Vec<&str> = table.key.iter().map(name).collect();
    let since = match name(&source.event_time) {
        "" => "its record's timestamp",
        column => column,
    };
    line!(out, "  key {}, a version holds from {since} on", key.join(", "));
    explain_columns(out, source);
}

fn explain_columns(out: &mut String, source: &SourceSpec) {
    let named = |(_, field): &(usize, &FieldRef)| !field.name().is_empty();
    for (index, field) in source.schema.fields().iter().enumerate().filter(named) {
        let mut origin = String::new();
        if let Some(path) = &source.paths[index] {
            let _ = write!(origin, " from {}", path.join("."));
        }
        if let Some((_, metadata)) = source.metadata.iter().find(|(column, _)| *column == index) {
            let _ = write!(origin, " from the record's {}", format!("{metadata:?}").to_lowercase());
        }
        line!(out, "  column {} {}{origin}", field.name(), field.data_type());
    }
}

fn explain_pane_set(out: &mut String, pipeline: &Pipeline, index: usize, set: &PaneSetSpec) {
    let source = &pipeline.sources[set.source];
    line!(
        out,
        "\npane set {index} over {}  [{:016x}]",
        source.name,
        set.fingerprint
    );
    line!(out, "  width {}", display(set.width_ms));
    if let Some(filter) = &set.filter {
        line!(out, "  filter {filter}");
    }
    for (key, field) in set.keys.iter().zip(&set.key_fields) {
        line!(out, "  key {} {} = {key}", field.name(), field.data_type());
    }
    for aggregate in &set.aggregates {
        line!(out, "  aggregate {}", explain_aggregate(aggregate));
    }
    let served: Vec<String> = set.windows.iter().map(explain_window).collect();
    if served.is_empty() {
        line!(out, "  serves silence");
    } else {
        line!(out, "  serves {}", served.join("; "));
    }
    let span_ms = set
        .windows
        .iter()
        .map(|window| match window.session_gap_ms {
            // As long as it may get before it is cut.
            Some(gap_ms) => SESSION_PANES_MAX * set.width_ms + gap_ms + window.lateness_ms,
            None => window.size_ms + window.lateness_ms,
        })
        .max();
    let panes = span_ms.unwrap_or(set.width_ms).div_euclid(set.width_ms) + 1;
    line!(out, "  state at most {panes} panes per key, {} per pane", state(set));
    if let Some(limit) = set.state_limit {
        let beyond = match limit.beyond {
            Beyond::Reject => "rows of further keys are dead letters",
            Beyond::Evict => "panes are published early before a further key",
            Beyond::Fail => "a further key stops the stage",
        };
        let most = match limit.budget {
            Budget::Keys(keys) => format!("{keys} keys"),
            Budget::Bytes(bytes) => format!("{} KB", bytes >> 10),
        };
        line!(out, "  at most {most} per pane and partition: {beyond}");
    }
}

fn explain_window(window: &WindowSpec) -> String {
    let mut text = window.view.clone();
    if let Some(gap_ms) = window.session_gap_ms {
        let _ = write!(text, " session gap {}", display(gap_ms));
    } else if window.slide_ms == window.size_ms {
        let _ = write!(text, " tumble {}", display(window.size_ms));
    } else {
        let _ = write!(
            text,
            " hop {} every {}",
            display(window.size_ms),
            display(window.slide_ms)
        );
    }
    if window.offset_ms != 0 {
        let _ = write!(text, " offset {}", display(window.offset_ms));
    }
    if window.lateness_ms != 0 {
        let _ = write!(text, " lateness {}", display(window.lateness_ms));
    }
    if let Some(every_ms) = window.early_every_ms {
        let _ = write!(text, " early every {}", display(every_ms));
    }
    if let Some(topic) = &window.late_topic {
        let _ = write!(text, " late rows to {topic}");
    }
    text
}

fn explain_aggregate(aggregate: &AggregateSpec) -> String {
    let args: Vec<String> = aggregate.args.iter().map(|arg| arg.to_string()).collect();
    let mut text = match &aggregate.kind {
        AggregateKind::Count if args.is_empty() => "count(*)".to_owned(),
        AggregateKind::Quantile { q } => format!("quantile({}, {q})", args.join(", ")),
        AggregateKind::Other(function) => format!("{} through DataFusion", function.name()),
        kind => format!("{}({})", format!("{kind:?}").to_lowercase(), args.join(", ")),
    };
    if let Some(filter) = &aggregate.filter {
        let _ = write!(text, " where {filter}");
    }
    let _ = write!(text, " → {}", aggregate.output);
    text
}

/// Bytes of the aggregates of one key in one pane, as the engine keeps them.
fn state(set: &PaneSetSpec) -> String {
    let mut fixed = 0;
    let mut growing = Vec::new();
    for aggregate in &set.aggregates {
        match &aggregate.kind {
            AggregateKind::Count => fixed += 8,
            AggregateKind::Min | AggregateKind::Max => fixed += 9,
            AggregateKind::Sum if aggregate.output.is_integer() => fixed += 9,
            AggregateKind::Sum | AggregateKind::Avg => fixed += 24,
            AggregateKind::Var | AggregateKind::Stddev | AggregateKind::VarPop | AggregateKind::StddevPop => {
                fixed += 40;
            }
            AggregateKind::Pairs(_) => fixed += 88,
            AggregateKind::First | AggregateKind::Last => growing.push("a value per first or last".to_owned()),
            AggregateKind::Quantile { .. } => growing.push("a sketch per quantile".to_owned()),
            AggregateKind::Rate | AggregateKind::Increase | AggregateKind::Delta => {
                growing.push("up to 16 KB of points per rate".to_owned());
            }
            AggregateKind::Other(function) => growing.push(format!("the state of {}", function.fun().name())),
        }
    }
    growing.dedup();
    let mut parts = vec![format!("{fixed} bytes")];
    parts.extend(growing);
    parts.join(" and ")
}

fn explain_view(out: &mut String, pipeline: &Pipeline, view: &ViewSpec) {
    let shared = pipeline
        .views
        .iter()
        .filter(|other| other.pane_sets == view.pane_sets)
        .count();
    let shared = if shared > 1 {
        format!(", shared by {shared} views")
    } else {
        String::new()
    };
    let sets: Vec<String> = view.pane_sets.iter().map(ToString::to_string).collect();
    let sets = match sets.len() {
        1 => format!("pane set {}", sets[0]),
        _ => format!("pane sets {}", sets.join(" and ")),
    };
    line!(out, "\nview {} over {sets}{shared}", view.name);
    line!(out, "  window {}", explain_window(&view.window));
    for (index, aggregate) in view.aggregates.iter().enumerate() {
        line!(out, "  agg_{index} is aggregate {aggregate}");
    }
    for (field, expr) in view.output.fields().iter().zip(&view.projection) {
        line!(out, "  column {} {} = {expr}", field.name(), field.data_type());
    }
    if let Some(having) = &view.having {
        line!(out, "  having {having}");
    }
    if let Some(judged) = &view.judged {
        for detector in &judged.detectors {
            let (_, value) = &detector.features[0];
            let value = view.output.field(*value).name();
            line!(
                out,
                "  {value} judged by {}{}",
                detector.using,
                options(&detector.options)
            );
            line!(out, "    key {}", columns(&detector.keys));
        }
        for (field, expr) in judged.output.fields().iter().zip(&judged.projection) {
            line!(out, "  then column {} {} = {expr}", field.name(), field.data_type());
        }
        if let Some(filter) = &judged.filter {
            line!(out, "  then where {filter}");
        }
    }
    if view.fill_missing_windows > 0 {
        line!(
            out,
            "  silent keys yield NULL for {} windows",
            view.fill_missing_windows
        );
    }
}

fn explain_detector(out: &mut String, pipeline: &Pipeline, detector: &DetectorSpec) {
    let input = match detector.input {
        DetectorInput::View(index) => format!("view {}", pipeline.views[index].name),
        DetectorInput::PaneSet(index) => format!("pane set {index}"),
    };
    line!(out, "\ndetector {} on {input}", detector.name);
    line!(out, "  using {}{}", detector.using, options(&detector.options));
    line!(out, "  key {}", columns(&detector.keys));
    if !detector.features.is_empty() {
        line!(out, "  features {}", columns(&detector.features));
    }
    if !detector.columns.is_empty() {
        line!(out, "  for policies {}", columns(&detector.columns));
    }
}

fn explain_sink(out: &mut String, pipeline: &Pipeline, sink: &SinkSpec) {
    let what = match sink.input {
        SinkInput::View(view) => format!("view {}", pipeline.views[view].name),
        SinkInput::Detector(detector) => format!("detector {}", pipeline.detectors[detector].name),
        SinkInput::Late(view) => format!("late rows of view {}", pipeline.views[view].name),
        SinkInput::DeadLetters(source) => format!("dead letters of source {}", pipeline.sources[source].name),
    };
    line!(out, "\nsink {} of {what}", sink.name);
    let format = match sink.format {
        SinkFormat::Json => "JSON",
        SinkFormat::CloudEvents => "CloudEvents",
        SinkFormat::OtlpMetrics => "OTLP metrics",
    };
    let keys: Vec<&str> = sink.keys.iter().map(|(name, _)| name.as_str()).collect();
    let keys = match keys.is_empty() {
        true => String::new(),
        false => format!(", keyed by {}", keys.join(", ")),
    };
    line!(out, "  to topic {} as {format}{keys}", sink.topic);
}

fn columns(columns: &[(String, usize)]) -> String {
    let names: Vec<String> = columns
        .iter()
        .map(|(name, index)| format!("{name} ({index})"))
        .collect();
    names.join(", ")
}

fn options(options: &[(String, OptionValue)]) -> String {
    let options: Vec<String> = options
        .iter()
        .map(|(name, value)| match value {
            OptionValue::Number(number) => format!("{name} = {number}"),
            OptionValue::Text(text) => format!("{name} = '{text}'"),
            OptionValue::Bool(flag) => format!("{name} = {flag}"),
        })
        .collect();
    if options.is_empty() {
        return String::new();
    }
    format!(" with {}", options.join(", "))
}

fn explain_policy(out: &mut String, pipeline: &Pipeline, policy: &PolicySpec) {
    line!(
        out,
        "\npolicy {} on {}",
        policy.name,
        pipeline.detectors[policy.detector].name
    );
    let when = policy.when.as_ref().map_or_else(String::new, ToString::to_string);
    line!(out, "  when {when} for {} of {} windows", policy.for_k, policy.for_n);
    let clear = policy.clear.as_ref().map_or_else(String::new, ToString::to_string);
    line!(out, "  clear when {clear} for {} windows", policy.clear_windows);
    let action = match &policy.action {
        ActionSpec::Fixed(verb) => verb.clone(),
        ActionSpec::Ladder(steps) => format!("ladder {}", steps.join(", ")),
        ActionSpec::Choose => "the learned choice".into(),
    };
    line!(out, "  do {action} to {}{}", policy.target, options(&policy.params));
    line!(out, "  window step {}", display(policy.window_step_ms));
    let ms = |duration: std::time::Duration| display(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX));
    line!(
        out,
        "  cooldown {}, expires after {}",
        ms(policy.cooldown),
        ms(policy.expires_after)
    );
    for (count, per) in &policy.limits {
        line!(out, "  at most {count} per {}", ms(*per));
    }
    line!(
        out,
        "  mode {}, into {}",
        format!("{:?}", policy.mode).to_lowercase(),
        policy.into
    );
}
