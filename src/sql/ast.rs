//! Statements as written, each part with its place.

use engine::spec::{Mode, OptionValue, StateLimit};

use crate::{
    diagnostic::Span,
    text::{At, Name, Token},
};

#[derive(Debug)]
pub(crate) enum Statement {
    Source(Source),
    Rows(Rows),
    View(View),
    Detector(Detector),
    Policy(Policy),
    Sink(Sink),
}

impl Statement {
    pub fn name(&self) -> &Name {
        match self {
            Self::Source(source) => &source.name,
            Self::Rows(rows) => &rows.name,
            Self::View(view) => &view.name,
            Self::Detector(detector) => &detector.name,
            Self::Policy(policy) => &policy.name,
            Self::Sink(sink) => &sink.name,
        }
    }

    /// Something in it is wrong, and was said.
    pub fn mark_broken(&mut self) {
        let broken = match self {
            Self::Source(source) => &mut source.broken,
            Self::Rows(rows) => &mut rows.broken,
            Self::View(view) => &mut view.broken,
            Self::Detector(detector) => &mut detector.broken,
            Self::Policy(policy) => &mut policy.broken,
            Self::Sink(sink) => &mut sink.broken,
        };
        *broken = true;
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Rows(_) => "view",
            Self::View(_) => "feature view",
            Self::Detector(_) => "detector",
            Self::Policy(_) => "policy",
            Self::Sink(_) => "sink",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Source {
    pub name: Name,
    /// `None` without a column list.
    pub columns: Option<Vec<Column>>,
    pub watermark: Option<Watermark>,
    /// PRIMARY KEY, of a table in a file.
    pub primary_key: Vec<Name>,
    pub options: Vec<Setting>,
    /// Names of columns that are left out, for their declarations are wrong.
    pub unknown: Vec<String>,
    /// Parts of it are left out, for they are wrong.
    pub broken: bool,
    /// From CREATE to the last token.
    pub span: Span,
}

#[derive(Debug)]
pub(crate) struct Column {
    pub name: Name,
    pub data_type: At<ColumnType>,
    pub from: Option<ColumnFrom>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColumnType {
    Text,
    Float,
    Integer,
    Boolean,
    /// Decimals of a second: 0, 3, 6 or 9.
    Timestamp(u8),
    Map,
}

#[derive(Debug)]
pub(crate) enum ColumnFrom {
    /// A nested path in a document.
    Path(At<String>),
    /// Something of the record.
    Metadata(At<String>),
}

#[derive(Debug)]
pub(crate) struct Watermark {
    pub column: Name,
    pub delay_ms: i64,
    pub idle: Option<IdleTimeout>,
    pub max_future_skew_ms: Option<i64>,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdleTimeout {
    After { ms: i64 },
    Never,
}

/// `key = value` in WITH or PARAMS.
#[derive(Debug)]
pub(crate) struct Setting {
    pub key: At<String>,
    pub value: At<OptionValue>,
}

/// CREATE VIEW: rows of sources, not aggregated.
#[derive(Debug)]
pub(crate) struct Rows {
    pub name: Name,
    /// SELECT … UNION ALL SELECT ….
    pub select: Vec<Token>,
    /// Parts of it are left out, for they are wrong.
    pub broken: bool,
    pub span: Span,
}

#[derive(Debug)]
pub(crate) struct View {
    pub name: Name,
    pub lateness: Option<At<i64>>,
    pub late_topic: Option<At<String>>,
    pub fill_missing_windows: u32,
    /// ON STATE LIMIT.
    pub state_limit: Option<StateLimit>,
    /// EMIT EVERY.
    pub early_every: Option<At<i64>>,
    /// SELECT … up to EMIT or the end.
    pub select: Vec<Token>,
    /// Parts of it are left out, for they are wrong.
    pub broken: bool,
    pub span: Span,
}

#[derive(Debug)]
pub(crate) struct Detector {
    pub name: Name,
    pub on: Name,
    /// `None` without KEY: every grouping column.
    pub key: Option<Vec<Name>>,
    pub features: Vec<Name>,
    pub using: Name,
    pub options: Vec<Setting>,
    /// Parts of it are left out, for they are wrong.
    pub broken: bool,
    pub span: Span,
}

#[derive(Debug)]
pub(crate) struct Sink {
    pub name: Name,
    pub from: Name,
    pub what: SinkWhat,
    pub options: Vec<Setting>,
    /// Parts of it are left out, for they are wrong.
    pub broken: bool,
    pub span: Span,
}

/// What of it a sink writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SinkWhat {
    Rows,
    Late,
    DeadLetters,
}

#[derive(Debug)]
pub(crate) struct Policy {
    pub name: Name,
    pub on: Name,
    pub when: Option<Vec<Token>>,
    pub for_windows: Option<(At<u32>, At<u32>)>,
    pub clear: Option<Vec<Token>>,
    pub clear_windows: Option<u32>,
    pub cooldown_ms: Option<i64>,
    pub limits: Vec<(u32, i64)>,
    pub action: Option<engine::spec::ActionSpec>,
    pub target: Option<Name>,
    pub params: Vec<Setting>,
    pub expires_after_ms: Option<i64>,
    pub mode: Option<Mode>,
    pub into: Option<At<String>>,
    /// Parts of it are left out, for they are wrong.
    pub broken: bool,
    pub span: Span,
}
