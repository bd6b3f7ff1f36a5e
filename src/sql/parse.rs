//! Statement heads: tokens → [`ast`](crate::ast). The SELECT of a view and the conditions of a policy stay tokens.

mod policy;
mod source;

use datafusion::sql::sqlparser::tokenizer::Token as Tok;
use engine::spec::{Beyond, Budget, OptionValue, StateLimit};

use crate::{
    ast::{Detector, Rows, Setting, Sink, SinkWhat, Statement, View},
    diagnostic::{Diagnostic, did_you_mean, nearest, one_of},
    text::{At, Cursor, Name, Parsed, Token},
};

const STATEMENTS: [&str; 7] = ["SOURCE", "TABLE", "VIEW", "FEATURE VIEW", "DETECTOR", "POLICY", "SINK"];

/// Whether these tokens begin a statement: CREATE is no name that is followed by what may be created.
pub(crate) fn begins_statement(tokens: &[Token]) -> bool {
    let heads = ["SOURCE", "TABLE", "VIEW", "FEATURE", "DETECTOR", "POLICY", "SINK", "OR"];
    matches!(tokens, [create, head, ..] if create.is_word("CREATE") && heads.iter().any(|word| head.is_word(word)))
}

/// One statement, all of its tokens. What is wrong goes to `errors`; a statement that has mistakes still is one, without them, where
/// it is clear what was meant.
pub(crate) fn statement(tokens: &[Token], errors: &mut Vec<Diagnostic>) -> Option<Statement> {
    let before = errors.len();
    let tokens = match balanced(tokens, errors) {
        Ok(tokens) => tokens,
        Err(error) => {
            errors.push(error);
            return None;
        }
    };
    let mut cursor = Cursor::mending(&tokens);
    let parsed = any(&mut cursor);
    let mended = !cursor.errors.is_empty() || errors.len() > before;
    errors.append(&mut cursor.errors);
    match parsed {
        Ok(mut statement) => {
            if mended {
                statement.mark_broken();
            }
            Some(statement)
        }
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

/// Statements of other systems, and what is written instead.
const OTHER_STATEMENTS: [(&str, &str); 5] = [
    ("INSERT", "write CREATE SINK name FROM view WITH (topic = '…')"),
    (
        "DROP",
        "remove the statement that created it: applying a file replaces what it was before",
    ),
    (
        "ALTER",
        "edit the statement that created it: applying a file replaces what it was before",
    ),
    (
        "SELECT",
        "write CREATE FEATURE VIEW name AS SELECT …, or look at rows with `homeostat preview`",
    ),
    (
        "SET",
        "what is no part of a pipeline is configuration: `homeostat config` shows it",
    ),
];

fn other_statement(tokens: &[Token], error: Diagnostic) -> Diagnostic {
    match tokens.first() {
        Some(Token { kind: Tok::Sharp, .. }) => error.help("comments are -- to the end of the line, or /* … */"),
        first => {
            let other = OTHER_STATEMENTS
                .iter()
                .find(|(word, _)| first.is_some_and(|first| first.is_word(word)));
            error.help_opt(other.map(|(_, help)| (*help).to_owned()))
        }
    }
}

fn any(cursor: &mut Cursor<'_>) -> Parsed<Statement> {
    let tokens = cursor.rest();
    let start = cursor.here();
    if cursor.is("INCLUDE") {
        return Err(Diagnostic::new("INCLUDE names one file, in quotes", start).help("write INCLUDE 'sources.sql';"));
    }
    cursor
        .expect("CREATE")
        .map_err(|error| other_statement(tokens, error))?;
    if cursor.eat("OR") {
        cursor.expect("REPLACE")?;
    }
    let mut statement = loop {
        if cursor.eat("SOURCE") || cursor.eat("TABLE") {
            break Statement::Source(source::source(cursor)?);
        } else if cursor.eat("VIEW") {
            break Statement::Rows(rows(cursor)?);
        } else if cursor.eat("FEATURE") {
            cursor.expect("VIEW")?;
            break Statement::View(view(cursor)?);
        } else if cursor.eat("DETECTOR") {
            break Statement::Detector(detector(cursor)?);
        } else if cursor.eat("POLICY") {
            break Statement::Policy(policy::policy(cursor)?);
        } else if cursor.eat("SINK") {
            break Statement::Sink(sink(cursor)?);
        }
        let what = "SOURCE, TABLE, VIEW, FEATURE VIEW, DETECTOR, POLICY or SINK";
        let (materialized, stream) = (cursor.is("MATERIALIZED"), cursor.is("STREAM"));
        cursor.mend(what, &STATEMENTS).map_err(|error| {
            if materialized {
                error.help("write CREATE FEATURE VIEW")
            } else if stream {
                error.help("write CREATE SOURCE")
            } else {
                error
            }
        })?;
    };
    let whole = start.to(cursor.last());
    match &mut statement {
        Statement::Source(source) => source.span = whole,
        Statement::Rows(rows) => rows.span = whole,
        Statement::View(view) => view.span = whole,
        Statement::Detector(detector) => detector.span = whole,
        Statement::Policy(policy) => policy.span = whole,
        Statement::Sink(sink) => sink.span = whole,
    }
    Ok(statement)
}

/// A parenthesis too many or too few is best said at its own place. The tokens without the one, or with the other where it is clear
/// where it belongs, so that what else is wrong is said, too.
fn balanced(tokens: &[Token], errors: &mut Vec<Diagnostic>) -> Parsed<Vec<Token>> {
    let mut open = Vec::new();
    let mut kept: Vec<Token> = Vec::with_capacity(tokens.len());
    for token in tokens {
        match token.kind {
            Tok::LParen => open.push(kept.len()),
            Tok::RParen if open.pop().is_none() => {
                errors.push(Diagnostic::new("this `)` closes nothing", token.span));
                continue;
            }
            _ => {}
        }
        kept.push(token.clone());
    }
    // From the last one on, so that the others stay where they are.
    while let Some(at) = open.pop() {
        let error = Diagnostic::new("this `(` is never closed", kept[at].span);
        let Some(end) = end_of_arguments(&kept, at) else {
            return Err(error);
        };
        errors.push(error);
        kept.insert(end, kept[end - 1].replaced(Tok::RParen));
    }
    Ok(kept)
}

/// Where the arguments end, at the latest, that begin behind a parenthesis which is never closed. Where there are commas it may be before any
/// of them, unless it is a window.
fn end_of_arguments(tokens: &[Token], open: usize) -> Option<usize> {
    let before = open.checked_sub(1).and_then(|at| tokens[at].word())?;
    let is_any = |words: &[&str]| words.iter().any(|word| before.value.eq_ignore_ascii_case(word));
    let window = is_any(&["TUMBLE", "HOP", "SESSION"]);
    if is_any(&[
        "CAST",
        "TRY_CAST",
        "EXTRACT",
        "TRIM",
        "SUBSTRING",
        "FILTER",
        "GROUP",
        "WITH",
    ]) {
        return None;
    }
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open + 1) {
        match token.kind {
            Tok::LParen => depth += 1,
            Tok::RParen => depth -= 1,
            Tok::Comma if depth == 0 && !window => return None,
            _ if depth > 0 => {}
            _ => {
                let ends = ["AS", "FROM", "WHERE", "GROUP", "HAVING", "EMIT"];
                if ends.iter().any(|word| token.is_word(word)) {
                    return Some(at).filter(|at| *at > open + 1);
                }
            }
        }
    }
    None
}

/// `name AS SELECT …`: rows, without a window.
fn rows(cursor: &mut Cursor<'_>) -> Parsed<Rows> {
    let name = cursor.name("a name for the view")?;
    cursor.expect("AS")?;
    let select = cursor.until(&["EMIT"]).to_vec();
    if cursor.peek().is_some() {
        return Err(Diagnostic::new("a view of rows closes no window", cursor.here())
            .help("write CREATE FEATURE VIEW for windows over rows"));
    }
    Ok(Rows {
        name,
        select,
        broken: false,
        span: cursor.last(),
    })
}

const VIEW_CLAUSES: [&str; 5] = ["ALLOW LATENESS", "LATE DATA TO", "FILL MISSING", "ON STATE LIMIT", "AS"];
const VIEW_HEADS: [&str; 6] = ["ALLOW", "LATE", "FILL", "ON", "AS", "SELECT"];
/// As many keys as fit into some 100 MB.
const STATE_LIMIT_KEYS: u32 = 1_000_000;
const STATE_LIMIT_BYTES: [(&str, u64); 3] = [("KB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30)];

fn view(cursor: &mut Cursor<'_>) -> Parsed<View> {
    let mut view = View {
        name: cursor.name("a name for the view")?,
        lateness: None,
        late_topic: None,
        fill_missing_windows: 0,
        state_limit: None,
        early_every: None,
        select: Vec::new(),
        broken: false,
        span: cursor.here(),
    };
    let mut seen = Once::default();
    loop {
        match view_clause(cursor, &mut view, &mut seen) {
            Ok(true) => {}
            Ok(false) if cursor.eat("AS") => break,
            Ok(false) => cursor.mend(&one_of(VIEW_CLAUSES), &VIEW_CLAUSES)?,
            Err(error) => cursor.skip_to(&VIEW_HEADS, error),
        }
    }
    if !cursor.is("SELECT") && !cursor.is("WITH") {
        cursor.mend("SELECT", &["SELECT"])?;
    }
    let start = cursor.position();
    view.select = cursor.until(&["EMIT"]).to_vec();
    if let Some(at) = misspelt_emit(&view.select).filter(|_| cursor.peek().is_none()) {
        view.select.truncate(at);
        cursor.back_to(start + at);
        cursor.mend("EMIT", &["EMIT"])?;
    }
    if let Some(head) = view.select.first_mut().filter(|head| !head.is_word("WITH")) {
        *head = head.keyword("SELECT");
    }
    if cursor.peek().is_some() {
        match emit(cursor) {
            Ok(every) => view.early_every = every,
            Err(error) => cursor.skip_to(&[], error),
        }
    }
    cursor.expect_end(&[])?;
    Ok(view)
}

/// Where a misspelt EMIT stands behind a SELECT.
fn misspelt_emit(select: &[Token]) -> Option<usize> {
    select.windows(3).rposition(|words| {
        let emits = words[1].is_word("EVERY")
            || (words[1].is_word("ON")
                && words[2]
                    .word()
                    .is_some_and(|word| nearest(&word.value, ["WINDOW"]).is_some()));
        emits
            && words[0]
                .word()
                .is_some_and(|word| nearest(&word.value, ["EMIT"]).is_some())
    })
}

/// Whether there was a clause.
fn view_clause(cursor: &mut Cursor<'_>, view: &mut View, seen: &mut Once) -> Parsed<bool> {
    let clause = cursor.here();
    if cursor.eat("ALLOW") {
        cursor.expect("LATENESS")?;
        seen.first("ALLOW LATENESS", clause)?;
        view.lateness = Some(not_negative(cursor.interval()?)?);
    } else if cursor.eat("LATE") {
        cursor.expect("DATA TO")?;
        seen.first("LATE DATA TO", clause)?;
        view.late_topic = Some(topic(cursor)?);
    } else if cursor.eat("FILL") {
        cursor.expect("MISSING WITH NULL FOR")?;
        seen.first("FILL MISSING", clause)?;
        view.fill_missing_windows = cursor.count("a number of windows")?.value;
        expect_windows(cursor)?;
    } else if cursor.eat("ON") {
        seen.first("ON STATE LIMIT", clause)?;
        view.state_limit = Some(state_limit(cursor)?);
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// `STATE LIMIT REJECT | EVICT | FAIL [AT n KEYS | AT n KB | MB | GB]`
fn state_limit(cursor: &mut Cursor<'_>) -> Parsed<StateLimit> {
    cursor.expect("STATE LIMIT")?;
    let beyond = loop {
        if cursor.eat("REJECT") {
            break Beyond::Reject;
        } else if cursor.eat("EVICT") {
            break Beyond::Evict;
        } else if cursor.eat("FAIL") {
            break Beyond::Fail;
        }
        cursor.mend("REJECT, EVICT or FAIL", &["REJECT", "EVICT", "FAIL"])?;
    };
    let mut budget = Budget::Keys(STATE_LIMIT_KEYS);
    if cursor.eat("AT") {
        let most = cursor.count("a number of keys, or of KB, MB or GB")?.value;
        let unit = STATE_LIMIT_BYTES.iter().find(|(unit, _)| cursor.eat(unit));
        budget = match unit {
            Some((_, bytes)) => Budget::Bytes(u64::from(most) * bytes),
            None if cursor.eat("KEYS") => Budget::Keys(most),
            None => return Err(cursor.expected("KEYS, KB, MB or GB", &["KEYS", "KB", "MB", "GB"])),
        };
    }
    Ok(StateLimit { budget, beyond })
}

/// `EMIT ON WINDOW CLOSE`, `EMIT EVERY interval`, or both.
fn emit(cursor: &mut Cursor<'_>) -> Parsed<Option<At<i64>>> {
    let start = cursor.expect("EMIT")?;
    if cursor.is("ON") && cursor.is_at(1, "UPDATE") {
        return Err(
            Diagnostic::new("a window does not speak at every row", start.to(cursor.here()))
                .help("write EMIT EVERY INTERVAL '5' SECOND for early rows"),
        );
    }
    if cursor.is("CHANGES") || cursor.is("FINAL") {
        let error = cursor.expected("ON WINDOW CLOSE or EVERY", &[]);
        return Err(error.help("write EMIT ON WINDOW CLOSE, or EMIT EVERY INTERVAL '5' SECOND for early rows, too"));
    }
    if !cursor.eat("EVERY") {
        cursor.expect("ON WINDOW CLOSE")?;
        return Ok(None);
    }
    let every = cursor.interval()?;
    if every.value <= 0 {
        return Err(Diagnostic::new(
            "this length of time must be longer than zero",
            every.span,
        ));
    }
    if cursor.is("ON") {
        cursor.expect("ON WINDOW CLOSE")?;
    }
    Ok(Some(every))
}

fn detector(cursor: &mut Cursor<'_>) -> Parsed<Detector> {
    let name = cursor.name("a name for the detector")?;
    cursor.expect("ON")?;
    let on = cursor.name("the view or source that it watches")?;
    let mut key = None;
    let mut features = Vec::new();
    let mut using = None;
    let mut options = Vec::new();
    loop {
        let mut clauses = vec!["KEY (…)", "FEATURES (…)", "USING"];
        if key.is_some() || !features.is_empty() {
            clauses.remove(0);
        }
        if !features.is_empty() {
            clauses.remove(0);
        }
        let parsed = if cursor.eat("KEY") {
            let names = cursor.list(|cursor| cursor.name("a column"));
            names.map(|names| key = Some(names))
        } else if cursor.eat("FEATURES") {
            let names = cursor.list(|cursor| cursor.name("a column"));
            names.map(|names| features = names)
        } else if cursor.eat("USING") {
            using = Some(cursor.name("the name of an algorithm")?);
            break;
        } else {
            cursor.mend(&one_of(clauses), &["KEY", "FEATURES", "USING"])
        };
        if let Err(error) = parsed {
            cursor.skip_to(&["KEY", "FEATURES", "USING"], error);
            if cursor.peek().is_none() {
                break;
            }
        }
    }
    if cursor.peek().is_some() {
        match cursor.eat("WITH") {
            true => options = settings(cursor, Values::Option)?,
            false => {
                cursor.mend("WITH (…) or `;`", &["WITH (…)"])?;
                cursor.eat("WITH");
                options = settings(cursor, Values::Option)?;
            }
        }
    }
    cursor.expect_end(&["WITH (…)"])?;
    // Without one, the statement is already said to be wrong.
    let using = using.unwrap_or_else(|| name.clone());
    Ok(Detector {
        name,
        on,
        key,
        features,
        using,
        options,
        broken: false,
        span: cursor.last(),
    })
}

fn sink(cursor: &mut Cursor<'_>) -> Parsed<Sink> {
    let name = cursor.name("a name for the sink")?;
    cursor.expect("FROM")?;
    let of = cursor.is_at(2, "OF");
    let what = if cursor.is("LATE") && (of || cursor.is_at(1, "ROWS")) {
        cursor.expect("LATE ROWS OF")?;
        SinkWhat::Late
    } else if cursor.is("DEAD") && (of || cursor.is_at(1, "LETTERS")) {
        cursor.expect("DEAD LETTERS OF")?;
        SinkWhat::DeadLetters
    } else {
        SinkWhat::Rows
    };
    let from = cursor.name(match what {
        SinkWhat::Rows => "the view or detector that it writes",
        SinkWhat::Late => "the view whose late rows it writes",
        SinkWhat::DeadLetters => "the source whose dead letters it writes",
    })?;
    cursor.expect("WITH").map_err(|error| {
        error.help(format!(
            "write CREATE SINK {} FROM {} WITH (topic = '…')",
            name.text, from.text
        ))
    })?;
    let options = settings(cursor, Values::Option)?;
    cursor.expect_end(&[])?;
    Ok(Sink {
        name,
        from,
        what,
        options,
        broken: false,
        span: cursor.last(),
    })
}

/// What values are for, which decides what is said of one that is no literal.
#[derive(Clone, Copy)]
pub(crate) enum Values {
    Option,
    Parameter,
}

/// `(key = value, 'quoted.key' = value)`, each key once.
pub(crate) fn settings(cursor: &mut Cursor<'_>, values: Values) -> Parsed<Vec<Setting>> {
    let settings: Vec<Setting> = cursor.list(|cursor| {
        let key = key(cursor)?;
        cursor.expect_punct(Tok::Eq)?;
        Ok(Setting {
            key,
            value: literal(cursor, values)?,
        })
    })?;
    for (index, setting) in settings.iter().enumerate() {
        if settings[..index]
            .iter()
            .any(|other| other.key.value == setting.key.value)
        {
            let error = Diagnostic::new(format!("`{}` is given twice", setting.key.value), setting.key.span);
            cursor.errors.push(error);
        }
    }
    Ok(settings)
}

/// `'scan.startup.mode'`, or bare with its dots and dashes.
fn key(cursor: &mut Cursor<'_>) -> Parsed<At<String>> {
    if let Some(Token {
        kind: Tok::SingleQuotedString(_),
        ..
    }) = cursor.peek()
    {
        return cursor.string("a name");
    }
    let first = cursor.name("a name")?;
    let mut text = first.text;
    loop {
        let joint = if cursor.eat_punct(Tok::Period) {
            '.'
        } else if cursor.eat_punct(Tok::Minus) {
            '-'
        } else {
            return Ok(At::new(text, first.span.to(cursor.last())));
        };
        text.push(joint);
        text.push_str(&cursor.name("a name")?.text);
    }
}

/// A number, a string or a truth value: nothing computed, nothing from a row.
pub(crate) fn literal(cursor: &mut Cursor<'_>, values: Values) -> Parsed<At<OptionValue>> {
    let start = cursor.here();
    let negative = cursor.eat_punct(Tok::Minus);
    let Some(token) = cursor.peek() else {
        return Err(cursor.expected("a value", &[]));
    };
    let value = match &token.kind {
        Tok::Number(digits, _) => match digits.parse::<f64>() {
            Ok(number) if number.is_finite() => OptionValue::Number(if negative { -number } else { number }),
            _ => return Err(Diagnostic::new(format!("`{digits}` is not a number"), token.span)),
        },
        Tok::SingleQuotedString(text) if !negative => OptionValue::Text(text.clone()),
        Tok::Word(_) if !negative && token.is_word("true") => OptionValue::Bool(true),
        Tok::Word(_) if !negative && token.is_word("false") => OptionValue::Bool(false),
        _ => return Err(no_literal(cursor, token, values)),
    };
    cursor.skip(1);
    Ok(At::new(value, start.to(cursor.last())))
}

fn no_literal(cursor: &Cursor<'_>, token: &Token, values: Values) -> Diagnostic {
    let error = match values {
        Values::Option => cursor.expected("a literal: a number, a string, true or false", &[]),
        Values::Parameter => Diagnostic::new(
            "a parameter is a literal: nothing that telemetry says may become part of a command",
            token.span,
        ),
    };
    error.help_opt(token.word().map(|word| format!("write '{}' for a string", word.value)))
}

/// A topic, quoted or bare.
pub(crate) fn topic(cursor: &mut Cursor<'_>) -> Parsed<At<String>> {
    let topic = match cursor.peek().and_then(Token::word) {
        Some(_) => {
            let Name { text, span, .. } = cursor.name("a topic")?;
            At::new(text, span)
        }
        None => cursor.string("a topic")?,
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.value.is_empty() || topic.value.len() > 249 || !topic.value.chars().all(legal) {
        return Err(
            Diagnostic::new(format!("`{}` is not a name of a topic", topic.value), topic.span)
                .help("letters, digits, `.`, `_` and `-`, at most 249 of them"),
        );
    }
    Ok(topic)
}

pub(crate) fn expect_windows(cursor: &mut Cursor<'_>) -> Parsed<()> {
    if cursor.eat("WINDOW") || cursor.eat("WINDOWS") {
        return Ok(());
    }
    Err(cursor.expected("`WINDOWS`", &["WINDOWS"]))
}

pub(crate) fn not_negative(interval: At<i64>) -> Parsed<At<i64>> {
    if interval.value < 0 {
        return Err(Diagnostic::new(
            "this length of time must not be negative",
            interval.span,
        ));
    }
    Ok(interval)
}

/// Clauses that may stand once.
#[derive(Default)]
pub(crate) struct Once(Vec<&'static str>);

impl Once {
    pub fn first(&mut self, clause: &'static str, span: crate::diagnostic::Span) -> Parsed<()> {
        if self.0.contains(&clause) {
            return Err(Diagnostic::new(format!("{clause} stands twice"), span));
        }
        self.0.push(clause);
        Ok(())
    }
}

/// The nearest of the words, for names that are words of the language.
pub(crate) fn word_help(name: &str, known: &[&str]) -> Option<String> {
    did_you_mean(name, known.iter().copied())
}
