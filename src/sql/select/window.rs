//! The three spellings of a window: in FROM as `HOP(TABLE t, DESCRIPTOR(ts), …)` or `HOP(t, ts, …)`, and in GROUP BY as
//! `hop(ts, …)`. Slide comes before size, as everywhere.

use datafusion::sql::sqlparser::tokenizer::{Token as Tok, Word};

use super::is_call;
use crate::{
    diagnostic::{Diagnostic, Span},
    duration,
    source::{Source, WINDOW_COLUMNS},
    text::{At, Cursor, Name, Parsed, Token},
};

/// Window k is `[k·slide + offset, k·slide + offset + size)`; milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub size_ms: i64,
    pub slide_ms: i64,
    pub offset_ms: i64,
    /// Of a session.
    pub gap_ms: Option<i64>,
}

const WINDOWS: [&str; 3] = ["TUMBLE", "HOP", "SESSION"];
const OTHER_WINDOWS: [&str; 2] = ["CUMULATE", "HOPPING"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tumble,
    Hop,
    Session,
}

impl Kind {
    fn of(cursor: &Cursor<'_>) -> Self {
        match (cursor.is("HOP"), cursor.is("SESSION")) {
            (true, _) => Self::Hop,
            (_, true) => Self::Session,
            _ => Self::Tumble,
        }
    }
}

/// A window as written.
pub(crate) struct Written {
    window: Window,
    time: Option<Name>,
    span: Span,
}

pub(crate) struct From {
    pub source: Name,
    pub window: Option<Written>,
}

/// Steps behind FROM, if there is one.
fn eat_from(cursor: &mut Cursor<'_>, tokens: &[Token]) -> bool {
    cursor.until(&["FROM"]);
    while cursor.is("FROM") && cursor.position() > 0 && tokens[cursor.position() - 1].is_word("DISTINCT") {
        // IS DISTINCT FROM is an operator.
        cursor.skip(1);
        cursor.until(&["FROM"]);
    }
    cursor.eat("FROM")
}

/// The bare name that FROM begins with; `None` where it is a window or a query.
pub(crate) fn first_table(tokens: &[Token]) -> Option<Name> {
    let mut cursor = Cursor::new(tokens);
    let found = eat_from(&mut cursor, tokens) && cursor.rest().get(1).is_none_or(|next| next.kind != Tok::LParen);
    found.then(|| cursor.name("a source or a view").ok()).flatten()
}

/// Where the query in parentheses stands that FROM, or the window in it, begins with.
pub(crate) fn inline_query(tokens: &[Token]) -> Option<(usize, usize)> {
    let mut cursor = Cursor::new(tokens);
    if !eat_from(&mut cursor, tokens) {
        return None;
    }
    let is_query = |cursor: &Cursor<'_>| cursor.is_punct(&Tok::LParen) && cursor.is_at(1, "SELECT");
    if is_call(&cursor, &["TABLE"]) {
        cursor.skip(2);
    }
    if is_call(&cursor, &WINDOWS) {
        cursor.skip(2);
        cursor.eat("TABLE");
    }
    if !is_query(&cursor) {
        return None;
    }
    let from = cursor.position();
    let mut depth = 0;
    let length = cursor.rest().iter().position(|token| {
        match token.kind {
            Tok::LParen => depth += 1,
            Tok::RParen => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    Some((from, from + length))
}

/// The tokens with the window in FROM replaced by its table.
pub(crate) fn take_from(tokens: &[Token]) -> Parsed<(Vec<Token>, From)> {
    let mut cursor = Cursor::new(tokens);
    if !eat_from(&mut cursor, tokens) {
        return Err(cursor
            .expected("FROM", &["FROM"])
            .help("a view reads a source: FROM TUMBLE(TABLE source, DESCRIPTOR(event_time), INTERVAL '1' MINUTE)"));
    }
    let start = cursor.position();
    let wrapped = is_call(&cursor, &["TABLE"]);
    if wrapped {
        cursor.skip(2);
    }
    if is_call(&cursor, &OTHER_WINDOWS) {
        return Err(unsupported(&cursor));
    }
    let (source, window) = if is_call(&cursor, &WINDOWS) {
        let (source, window) = table_function(&mut cursor)?;
        (source, Some(window))
    } else {
        if cursor.is_punct(&Tok::LParen) {
            return Err(Diagnostic::new("a view reads a source, not a query", cursor.here())
                .help("write a view of its own for the inner query"));
        }
        (cursor.name("a source or a window over one")?, None)
    };
    if wrapped {
        cursor.expect_punct(Tok::RParen)?;
    }
    let mut out = tokens[..start].to_vec();
    out.push(word(&tokens[start], &source.text, source.span));
    out.extend_from_slice(cursor.rest());
    Ok((out, From { source, window }))
}

/// A quoted word at the place of another token.
fn word(at: &Token, text: &str, span: Span) -> Token {
    let mut token = at.replaced(Tok::Word(Word {
        value: text.to_owned(),
        quote_style: Some('"'),
        keyword: datafusion::sql::sqlparser::keywords::Keyword::NoKeyword,
    }));
    token.span = span;
    token
}

fn unsupported(cursor: &Cursor<'_>) -> Diagnostic {
    let name = cursor.peek().map(|token| token.kind.to_string()).unwrap_or_default();
    let error = Diagnostic::new(format!("{name} windows are not supported"), cursor.here());
    error.help("use TUMBLE(TABLE t, DESCRIPTOR(ts), size) or HOP(TABLE t, DESCRIPTOR(ts), slide, size)")
}

/// `HOP(TABLE t, DESCRIPTOR(ts), slide, size[, offset])` or `HOP(t, ts, slide, size[, offset])`.
fn table_function(cursor: &mut Cursor<'_>) -> Parsed<(Name, Written)> {
    let start = cursor.here();
    let kind = Kind::of(cursor);
    cursor.skip(2);
    cursor.eat("TABLE");
    let source = cursor.name("a source")?;
    cursor.expect_punct(Tok::Comma)?;
    let time = if is_call(cursor, &["DESCRIPTOR"]) {
        cursor.skip(2);
        let time = cursor.name("the event time's column")?;
        cursor.expect_punct(Tok::RParen)?;
        time
    } else {
        cursor.name("DESCRIPTOR(event_time)")?
    };
    cursor.expect_punct(Tok::Comma)?;
    let window = lengths(cursor, kind, start)?;
    let written = Written {
        window,
        time: Some(time),
        span: start.to(cursor.last()),
    };
    Ok((source, written))
}

/// The intervals up to the closing parenthesis.
fn lengths(cursor: &mut Cursor<'_>, kind: Kind, start: Span) -> Parsed<Window> {
    let mut lengths = Vec::new();
    loop {
        lengths.push(cursor.interval()?);
        if cursor.eat_punct(Tok::RParen) {
            break;
        }
        if !cursor.eat_punct(Tok::Comma) {
            return Err(cursor.expected("`,` or `)`", &[]));
        }
    }
    let whole = start.to(cursor.last());
    if kind == Kind::Session {
        return session(&lengths, whole);
    }
    let (slide, size, offset) = match (kind == Kind::Hop, lengths.as_slice()) {
        (false, [size]) => (size, size, None),
        (false, [size, offset]) => (size, size, Some(offset)),
        (true, [slide, size]) => (slide, size, None),
        (true, [slide, size, offset]) => (slide, size, Some(offset)),
        (false, _) => {
            return Err(Diagnostic::new("TUMBLE takes a size and at most an offset", whole)
                .help("TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE)"));
        }
        (true, _) => {
            return Err(
                Diagnostic::new("HOP takes a slide, a size and at most an offset", whole)
                    .help("HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '1' MINUTE)"),
            );
        }
    };
    check(slide, size)?;
    Ok(Window {
        size_ms: size.value,
        slide_ms: slide.value,
        offset_ms: offset.map_or(0, |offset| offset.value.rem_euclid(slide.value)),
        gap_ms: None,
    })
}

/// A row belongs to no window of fixed bounds; twice the gap says how long it may matter.
fn session(lengths: &[At<i64>], whole: Span) -> Parsed<Window> {
    let [gap] = lengths else {
        return Err(Diagnostic::new("SESSION takes a gap", whole)
            .help("SESSION(TABLE t, DESCRIPTOR(ts), INTERVAL '30' SECOND)"));
    };
    if gap.value <= 0 {
        return Err(Diagnostic::new("a gap is longer than zero", gap.span));
    }
    Ok(Window {
        size_ms: 2 * gap.value,
        slide_ms: gap.value,
        offset_ms: 0,
        gap_ms: Some(gap.value),
    })
}

fn check(slide: &At<i64>, size: &At<i64>) -> Parsed<()> {
    for length in [slide, size] {
        if length.value <= 0 {
            return Err(Diagnostic::new("a window is longer than zero", length.span));
        }
    }
    if slide.value > size.value {
        return Err(Diagnostic::new(
            "the slide is longer than the window: rows between windows would be lost",
            slide.span,
        )
        .help(format!(
            "slide comes first, then size: {}, {}",
            interval(size.value),
            interval(slide.value)
        )));
    }
    Ok(())
}

/// As the language writes it.
pub(crate) fn interval(ms: i64) -> String {
    format!("INTERVAL '{}'", duration::display(ms))
}

/// The tokens with `hop(…)` or `tumble(…)` in GROUP BY replaced by the window's columns.
pub(crate) fn take_group_by(tokens: Vec<Token>) -> Parsed<(Vec<Token>, Option<Written>)> {
    let mut cursor = Cursor::new(&tokens);
    cursor.until(&["GROUP"]);
    while cursor.is("GROUP") && !cursor.is_at(1, "BY") {
        // WITHIN GROUP (…) belongs to an aggregate.
        cursor.skip(1);
        cursor.until(&["GROUP"]);
    }
    let group = cursor.position();
    cursor.until(&["HAVING", "ORDER", "LIMIT"]);
    let end = cursor.position();
    let mut found = None;
    let mut out = tokens[..group].to_vec();
    let mut cursor = Cursor::new(&tokens[..end]);
    cursor.skip(group);
    while let Some(token) = cursor.peek() {
        if is_call(&cursor, &OTHER_WINDOWS) {
            return Err(unsupported(&cursor));
        }
        if !is_call(&cursor, &WINDOWS) {
            out.push(token.clone());
            cursor.skip(1);
            continue;
        }
        let written = group_function(&mut cursor)?;
        if found.is_some() {
            return Err(two_windows(written.span));
        }
        out.push(word(token, WINDOW_COLUMNS[0], written.span));
        out.push(token.replaced(Tok::Comma));
        out.push(word(token, WINDOW_COLUMNS[1], written.span));
        found = Some(written);
    }
    out.extend_from_slice(&tokens[end..]);
    Ok((out, found))
}

/// `hop(ts, slide, size[, offset])`; the event time may be left out.
fn group_function(cursor: &mut Cursor<'_>) -> Parsed<Written> {
    let start = cursor.here();
    let kind = Kind::of(cursor);
    cursor.skip(2);
    let mut time = None;
    if !cursor.is("INTERVAL") {
        time = Some(cursor.name("the event time or INTERVAL")?);
        cursor.expect_punct(Tok::Comma)?;
    }
    let window = lengths(cursor, kind, start)?;
    Ok(Written {
        window,
        time,
        span: start.to(cursor.last()),
    })
}

fn two_windows(span: Span) -> Diagnostic {
    Diagnostic::new("a view has one window", span).help("write a second view for the other one")
}

/// The one window of a view, over its source's event time.
pub(crate) fn only(
    from: Option<Written>,
    grouped: Option<Written>,
    source: &Name,
    declared: &Source,
) -> Parsed<(Window, Span)> {
    let written = match (from, grouped) {
        (Some(written), None) | (None, Some(written)) => written,
        (Some(_), Some(second)) => return Err(two_windows(second.span)),
        (None, None) => {
            return Err(
                Diagnostic::new("the view has no window: it would aggregate without end", source.span).help(format!(
                    "write FROM TUMBLE(TABLE {}, DESCRIPTOR({}), INTERVAL '1' MINUTE)",
                    source.text, declared.event_time
                )),
            );
        }
    };
    if let Some(time) = &written.time
        && time.find([declared.event_time.as_str()]).is_none()
    {
        return Err(Diagnostic::new(
            format!(
                "windows go by the event time of `{}`, not by `{}`",
                source.text, time.text
            ),
            time.span,
        )
        .help(format!("write DESCRIPTOR({})", declared.event_time)));
    }
    Ok((written.window, written.span))
}
