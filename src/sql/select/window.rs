//! The three spellings of a window: in FROM as `HOP(TABLE t, DESCRIPTOR(ts), …)` or `HOP(t, ts, …)`, and in GROUP BY as
//! `hop(ts, …)`. Slide comes before size, as everywhere.

use datafusion::sql::sqlparser::tokenizer::{Token as Tok, Word};

use super::is_call;
use crate::{
    catalog::Functions,
    diagnostic::{Diagnostic, Span, nearest},
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
    /// None of these, which was said.
    Other,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name.to_ascii_uppercase().as_str() {
            "TUMBLE" => Self::Tumble,
            "HOP" => Self::Hop,
            "SESSION" => Self::Session,
            _ => Self::Other,
        }
    }
}

/// A window as written.
pub(crate) struct Written {
    /// `None` where it is wrong.
    window: Option<Window>,
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

/// Whether FROM begins with a window.
pub(crate) fn reads_window(tokens: &[Token]) -> bool {
    let mut cursor = Cursor::new(tokens);
    eat_from(&mut cursor, tokens) && call(&cursor).is_some()
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
    // A window, even if it is misspelt.
    if call(&cursor).is_some() {
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
pub(crate) fn take_from(tokens: &[Token], errors: &mut Vec<Diagnostic>) -> Parsed<(Vec<Token>, From)> {
    let mut cursor = Cursor::mending(tokens);
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
    let (source, window) = match call(&cursor) {
        Some(name) => {
            let kind = kind_in_from(&name, cursor.here(), errors);
            let (source, window) = table_function(&mut cursor, kind)?;
            (source, Some(window))
        }
        None if cursor.is_punct(&Tok::LParen) => {
            return Err(Diagnostic::new("a view reads a source, not a query", cursor.here())
                .help("write a view of its own for the inner query"));
        }
        None => (cursor.name("a source or a window over one")?, None),
    };
    if wrapped {
        cursor.expect_punct(Tok::RParen)?;
    }
    errors.append(&mut cursor.errors);
    let mut out = tokens[..start].to_vec();
    out.push(word(&tokens[start], &source.text, source.span));
    out.extend_from_slice(cursor.rest());
    Ok((out, From { source, window }))
}

/// The name of the function that is called here.
fn call(cursor: &Cursor<'_>) -> Option<String> {
    let called = cursor.rest().get(1).is_some_and(|next| next.kind == Tok::LParen);
    cursor
        .peek()
        .and_then(Token::word)
        .filter(|_| called)
        .map(|word| word.value.clone())
}

/// What FROM calls is a window, or was meant as one.
fn kind_in_from(name: &str, span: Span, errors: &mut Vec<Diagnostic>) -> Kind {
    if Kind::of(name) != Kind::Other {
        return Kind::of(name);
    }
    if OTHER_WINDOWS.iter().any(|other| other.eq_ignore_ascii_case(name)) {
        errors.push(unsupported(name, span));
        return Kind::Other;
    }
    let near = nearest(name, WINDOWS);
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => USE_WINDOWS.to_owned(),
    };
    errors.push(Diagnostic::new(format!("unknown window `{name}`"), span).help(help));
    near.map_or(Kind::Other, Kind::of)
}

const USE_WINDOWS: &str = "use TUMBLE(TABLE t, DESCRIPTOR(ts), size), HOP(TABLE t, DESCRIPTOR(ts), slide, size) or SESSION(TABLE t, DESCRIPTOR(ts), gap)";

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

fn unsupported(name: &str, span: Span) -> Diagnostic {
    Diagnostic::new(format!("{name} windows are not supported"), span)
        .help("use TUMBLE(TABLE t, DESCRIPTOR(ts), size) or HOP(TABLE t, DESCRIPTOR(ts), slide, size)")
}

/// `HOP(TABLE t, DESCRIPTOR(ts), slide, size[, offset])` or `HOP(t, ts, slide, size[, offset])`.
fn table_function(cursor: &mut Cursor<'_>, kind: Kind) -> Parsed<(Name, Written)> {
    let start = cursor.here();
    cursor.skip(2);
    if !cursor.eat("TABLE") && cursor.rest().get(1).is_some_and(|next| next.word().is_some()) {
        cursor.expect("TABLE")?;
    }
    let source = cursor.name("a source")?;
    let parsed = time(cursor).and_then(|time| Ok((time, lengths(cursor, kind, start)?)));
    let (time, window) = match parsed {
        Ok((time, window)) => (Some(time), window),
        Err(error) => {
            cursor.errors.push(error);
            close(cursor);
            (None, None)
        }
    };
    let written = Written {
        window,
        time,
        span: start.to(cursor.last()),
    };
    Ok((source, written))
}

/// `, DESCRIPTOR(ts),` or `, ts,`
fn time(cursor: &mut Cursor<'_>) -> Parsed<Name> {
    cursor.expect_punct(Tok::Comma)?;
    let time = if call(cursor).is_some() {
        cursor.expect("DESCRIPTOR")?;
        cursor.skip(1);
        let time = cursor.name("the event time's column")?;
        cursor.expect_punct(Tok::RParen)?;
        time
    } else {
        cursor.name("DESCRIPTOR(event_time)")?
    };
    cursor.expect_punct(Tok::Comma)?;
    Ok(time)
}

/// Steps behind the parenthesis that closes what the cursor is in.
fn close(cursor: &mut Cursor<'_>) {
    loop {
        cursor.skip_item();
        if cursor.eat_punct(Tok::RParen) || !cursor.eat_punct(Tok::Comma) {
            return;
        }
    }
}

/// The intervals up to the closing parenthesis; `None` where one of them, or the window, is wrong.
fn lengths(cursor: &mut Cursor<'_>, kind: Kind, start: Span) -> Parsed<Option<Window>> {
    let before = cursor.errors.len();
    let mut lengths = Vec::new();
    let mut wrong = false;
    loop {
        match cursor.interval() {
            Ok(length) => lengths.push(length),
            Err(error) => {
                wrong = true;
                cursor.errors.push(error);
                cursor.skip_item();
            }
        }
        if cursor.eat_punct(Tok::RParen) {
            break;
        }
        if !cursor.eat_punct(Tok::Comma) {
            return Err(cursor.expected("`,` or `)`", &[]));
        }
    }
    let whole = start.to(cursor.last());
    if wrong || kind == Kind::Other {
        return Ok(None);
    }
    match shape(kind, &lengths, whole) {
        Ok(window) => Ok(Some(window).filter(|_| cursor.errors.len() == before)),
        Err(error) => {
            cursor.errors.push(error);
            Ok(None)
        }
    }
}

fn shape(kind: Kind, lengths: &[At<i64>], whole: Span) -> Parsed<Window> {
    if kind == Kind::Session {
        return session(lengths, whole);
    }
    let (slide, size, offset) = match (kind == Kind::Hop, lengths) {
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

/// A row belongs to no window of fixed bounds. It is folded into panes of a quarter of the gap, at which sessions close; the narrower
/// they are the sooner, and the more there are of them.
fn session(lengths: &[At<i64>], whole: Span) -> Parsed<Window> {
    let [gap] = lengths else {
        return Err(Diagnostic::new("SESSION takes a gap", whole)
            .help("SESSION(TABLE t, DESCRIPTOR(ts), INTERVAL '30' SECOND)"));
    };
    if gap.value <= 0 {
        return Err(Diagnostic::new("a gap is longer than zero", gap.span));
    }
    let parts = [4, 2].into_iter().find(|parts| gap.value % parts == 0);
    let slide_ms = gap.value / parts.unwrap_or(1);
    Ok(Window {
        size_ms: gap.value + slide_ms,
        slide_ms,
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
pub(crate) fn take_group_by(
    tokens: Vec<Token>,
    functions: &Functions,
    errors: &mut Vec<Diagnostic>,
) -> (Vec<Token>, Option<Written>) {
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
    let mut found: Option<Written> = None;
    let mut out = tokens[..group].to_vec();
    let mut cursor = Cursor::mending(&tokens[..end]);
    cursor.skip(group);
    while let Some(token) = cursor.peek() {
        let Some(kind) = kind_in_group(&cursor, functions, errors) else {
            out.push(token.clone());
            cursor.skip(1);
            continue;
        };
        let written = group_function(&mut cursor, kind);
        if found.is_some() {
            errors.push(two_windows(written.span));
        }
        out.push(word(token, WINDOW_COLUMNS[0], written.span));
        out.push(token.replaced(Tok::Comma));
        out.push(word(token, WINDOW_COLUMNS[1], written.span));
        found = found.or(Some(written));
    }
    errors.append(&mut cursor.errors);
    out.extend_from_slice(&tokens[end..]);
    (out, found)
}

/// The window that is called here, or that a call seems to mean.
fn kind_in_group(cursor: &Cursor<'_>, functions: &Functions, errors: &mut Vec<Diagnostic>) -> Option<Kind> {
    let name = call(cursor)?;
    let of_time = cursor.rest()[2..].iter().take(4).any(|token| token.is_word("INTERVAL"));
    let is_other = OTHER_WINDOWS.iter().any(|other| other.eq_ignore_ascii_case(&name));
    match Kind::of(&name) {
        Kind::Other if is_other || (of_time && functions.find(&name).is_none()) => {
            Some(kind_in_from(&name, cursor.here(), errors))
        }
        Kind::Other => None,
        kind => Some(kind),
    }
}

/// `hop(ts, slide, size[, offset])`; the event time may be left out.
fn group_function(cursor: &mut Cursor<'_>, kind: Kind) -> Written {
    let start = cursor.here();
    cursor.skip(2);
    let mut time = None;
    let mut parsed = Ok(());
    if !cursor.is("INTERVAL")
        && !cursor
            .rest()
            .get(1)
            .is_some_and(|next| matches!(next.kind, Tok::SingleQuotedString(_)))
    {
        parsed = cursor.name("the event time or INTERVAL").and_then(|name| {
            time = Some(name);
            cursor.expect_punct(Tok::Comma).map(drop)
        });
    }
    let window = parsed
        .and_then(|()| lengths(cursor, kind, start))
        .unwrap_or_else(|error| {
            cursor.errors.push(error);
            close(cursor);
            None
        });
    Written {
        window,
        time,
        span: start.to(cursor.last()),
    }
}

fn two_windows(span: Span) -> Diagnostic {
    Diagnostic::new("a view has one window", span).help("write a second view for the other one")
}

/// The one window of a view, over its source's event time, and its place. `None` where there is none; a window that is wrong is none.
pub(crate) fn only(
    from: Option<Written>,
    grouped: Option<Written>,
    source: &Name,
    declared: &Source,
    errors: &mut Vec<Diagnostic>,
) -> Option<(Option<Window>, Span)> {
    let written = match (from, grouped) {
        (Some(written), None) | (None, Some(written)) => written,
        (Some(first), Some(second)) => {
            errors.push(two_windows(second.span));
            first
        }
        // What is wrong with a query in FROM was said there.
        (None, None) if declared.unknown.event_time && source.text.contains(' ') => return None,
        (None, None) => {
            let time = match declared.unknown.event_time {
                true => "ts",
                false => &declared.event_time,
            };
            let table = match source.text.contains(' ') {
                true => "(SELECT …)",
                false => &source.text,
            };
            errors.push(
                Diagnostic::new("the view has no window: it would aggregate without end", source.span).help(format!(
                    "write FROM TUMBLE(TABLE {table}, DESCRIPTOR({time}), INTERVAL '1' MINUTE)"
                )),
            );
            return None;
        }
    };
    if let Some(time) = &written.time
        && !declared.unknown.event_time
        && time.find([declared.event_time.as_str()]).is_none()
    {
        let message = match declared.column(&time.text).is_some() || declared.unknown.may_be(&time.text) {
            true => format!(
                "windows go by the event time of `{}`, not by `{}`",
                source.text, time.text
            ),
            false => format!(
                "unknown column `{}`: windows go by the event time of `{}`",
                time.text, source.text
            ),
        };
        errors.push(Diagnostic::new(message, time.span).help(format!("write DESCRIPTOR({})", declared.event_time)));
    }
    Some((written.window, written.span))
}
