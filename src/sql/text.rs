//! Tokens of the text with their place in bytes, and a cursor that parses statement heads from them.

use datafusion::sql::sqlparser::{
    dialect::GenericDialect,
    keywords::Keyword,
    tokenizer::{Location, Span as TextSpan, Token as Tok, TokenWithSpan, Tokenizer, Word},
};

use crate::{
    diagnostic::{Diagnostic, Span, did_you_mean, nearest},
    duration,
};

/// Where lines start: from line and column to bytes and back.
pub(crate) struct LineMap<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> LineMap<'a> {
    pub fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            text,
            starts: std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect(),
        }
    }

    /// Byte at a line and column, both counted from 1.
    pub fn offset(&self, location: Location) -> usize {
        let Some(start) = (location.line as usize)
            .checked_sub(1)
            .and_then(|line| self.starts.get(line))
        else {
            return self.text.len();
        };
        let column = (location.column as usize).saturating_sub(1);
        let rest = &self.text[*start..];
        start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
    }

    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts[line - 1];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }

    pub fn span(&self, span: TextSpan) -> Span {
        Span::new(self.offset(span.start), self.offset(span.end))
    }
}

/// A token that is neither space nor comment.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub kind: Tok,
    pub span: Span,
    pub location: TextSpan,
}

impl Token {
    pub fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Tok::Word(Word { value, quote_style: None, .. }) if value.eq_ignore_ascii_case(word))
    }

    pub fn word(&self) -> Option<&Word> {
        match &self.kind {
            Tok::Word(word) => Some(word),
            _ => None,
        }
    }

    /// For sqlparser, which keeps the place in the text.
    pub fn with_span(&self) -> TokenWithSpan {
        TokenWithSpan::new(self.kind.clone(), self.location)
    }

    /// A keyword at this one's place.
    pub fn keyword(&self, word: &str) -> Self {
        self.replaced(Tok::make_keyword(word))
    }

    /// Another token at this one's place.
    pub fn replaced(&self, kind: Tok) -> Self {
        Self { kind, ..self.clone() }
    }
}

/// The tokens up to the end, or up to what is none: a quote that is never closed.
pub(crate) fn tokenize(text: &str) -> (Vec<Token>, Option<Diagnostic>) {
    let lines = LineMap::new(text);
    let mut tokens = Vec::new();
    let error = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location_into_buf(&mut tokens)
        .map_err(|error| {
            let at = lines.offset(error.location);
            Diagnostic::new(lower_first(&error.message), Span::new(at, text.len().min(at + 1)))
        });
    let kept = tokens
        .into_iter()
        .filter(|token| !matches!(token.token, Tok::Whitespace(_)));
    let kept = kept.map(|token| Token {
        span: lines.span(token.span),
        kind: token.token,
        location: token.span,
    });
    (kept.collect(), error.err())
}

pub(crate) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Statements between semicolons, without the empty ones.
pub(crate) fn statements(tokens: &[Token]) -> impl Iterator<Item = &[Token]> {
    tokens
        .split(|token| token.kind == Tok::SemiColon)
        .filter(|statement| !statement.is_empty())
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct At<T> {
    pub value: T,
    pub span: Span,
}

impl<T> At<T> {
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

/// An identifier; unquoted ones also match in another case where that is not ambiguous.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Name {
    pub text: String,
    pub quoted: bool,
    pub span: Span,
}

impl Name {
    /// Index of the one of `known` that this names.
    pub fn find<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> Option<usize> {
        find(&self.text, self.quoted, known)
    }
}

/// The exact name, or for unquoted ones the only one that differs in case alone.
pub(crate) fn find<'a>(name: &str, quoted: bool, known: impl IntoIterator<Item = &'a str>) -> Option<usize> {
    let mut folded = None;
    let mut ambiguous = false;
    for (index, candidate) in known.into_iter().enumerate() {
        if candidate == name {
            return Some(index);
        }
        if !quoted && candidate.eq_ignore_ascii_case(name) {
            ambiguous = folded.is_some();
            folded = Some(index);
        }
    }
    folded.filter(|_| !ambiguous)
}

/// Whether a word behind a number seems to have been meant as its unit, rather than to begin what follows.
fn is_no_unit(token: &Token) -> bool {
    let clauses = [
        "ALLOW", "LATE", "FILL", "IDLE", "MAX", "EMIT", "COOLDOWN", "TARGET", "PARAMS", "EXPIRES", "MODE", "CLEAR",
    ];
    let clause = |word: &Word| word.keyword != Keyword::NoKeyword || clauses.iter().any(|clause| token.is_word(clause));
    token
        .word()
        .is_some_and(|word| nearest(&word.value, duration::UNITS).is_some() || !clause(word))
}

pub(crate) type Parsed<T> = Result<T, Diagnostic>;

/// Walks one statement.
///
/// One that [mends](Self::mending) goes on behind a mistake where it is clear what was meant, so that what comes after it is checked,
/// too; what it went on behind is in `errors`.
pub(crate) struct Cursor<'t> {
    tokens: &'t [Token],
    at: usize,
    mends: bool,
    /// A misspelt keyword and the word that it is read as.
    read_as: Option<(usize, &'static str)>,
    pub errors: Vec<Diagnostic>,
}

impl<'t> Cursor<'t> {
    pub fn new(tokens: &'t [Token]) -> Self {
        Self {
            tokens,
            at: 0,
            mends: false,
            read_as: None,
            errors: Vec::new(),
        }
    }

    /// A cursor whose `errors` somebody reads.
    pub fn mending(tokens: &'t [Token]) -> Self {
        Self {
            mends: true,
            ..Self::new(tokens)
        }
    }

    pub fn peek(&self) -> Option<&'t Token> {
        self.tokens.get(self.at)
    }

    pub fn next(&mut self) -> Option<&'t Token> {
        let token = self.tokens.get(self.at);
        self.at += usize::from(token.is_some());
        token
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn back_to(&mut self, position: usize) {
        self.at = position;
    }

    pub fn rest(&self) -> &'t [Token] {
        &self.tokens[self.at..]
    }

    pub fn skip(&mut self, count: usize) {
        self.at = (self.at + count).min(self.tokens.len());
    }

    /// Place of the next token; after the last one, an empty span.
    pub fn here(&self) -> Span {
        match (self.peek(), self.tokens.last()) {
            (Some(token), _) => token.span,
            (None, Some(last)) => Span::new(last.span.end, last.span.end),
            (None, None) => Span::default(),
        }
    }

    /// Place of the token before.
    pub fn last(&self) -> Span {
        self.at
            .checked_sub(1)
            .and_then(|at| self.tokens.get(at))
            .map_or_else(|| self.here(), |token| token.span)
    }

    pub fn is(&self, word: &str) -> bool {
        self.is_at(0, word)
    }

    pub fn is_at(&self, ahead: usize, word: &str) -> bool {
        let at = self.at + ahead;
        match self.read_as {
            Some((misspelt, meant)) if misspelt == at => meant.eq_ignore_ascii_case(word),
            _ => self.tokens.get(at).is_some_and(|token| token.is_word(word)),
        }
    }

    /// Reads the next token as the one of `words` that is meant, if one is; else says what was expected.
    pub fn mend(&mut self, what: &str, words: &[&'static str]) -> Parsed<()> {
        let error = self.expected(what, words);
        let again = self.read_as.is_some_and(|(misspelt, _)| misspelt == self.at);
        match self.misspelt(words).filter(|_| self.mends && !again) {
            Some(meant) => {
                self.errors.push(error);
                self.read_as = Some((self.at, meant));
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Notes what is wrong with something and stands before the next of `words`, which begin what comes after it.
    pub fn skip_to(&mut self, words: &[&str], error: Diagnostic) {
        self.errors.push(error);
        self.until(words);
    }

    /// Stands before the comma or the parenthesis that ends an item of a list.
    pub fn skip_item(&mut self) {
        self.skip_clause(&[]);
    }

    /// Stands before the next of `words`, or where the item ends.
    pub fn skip_clause(&mut self, words: &[&str]) {
        let mut depth = 0usize;
        while let Some(token) = self.peek() {
            match token.kind {
                Tok::Comma | Tok::RParen if depth == 0 => return,
                _ if depth == 0 && words.iter().any(|word| token.is_word(word)) => return,
                Tok::LParen => depth += 1,
                Tok::RParen => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
    }

    /// The item that `parse` reads, or, where a list that mends goes on without it, none.
    fn item<T>(&mut self, parse: &mut impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Option<T>> {
        let start = self.at;
        match parse(self) {
            Ok(item) => Ok(Some(item)),
            Err(error) if self.mends => {
                self.errors.push(error);
                self.at = start;
                self.skip_item();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub fn eat(&mut self, word: &str) -> bool {
        let found = self.is(word);
        self.at += usize::from(found);
        found
    }

    pub fn is_punct(&self, kind: &Tok) -> bool {
        self.peek().is_some_and(|token| token.kind == *kind)
    }

    pub fn eat_punct(&mut self, kind: Tok) -> bool {
        let found = self.is_punct(&kind);
        self.at += usize::from(found);
        found
    }

    /// Words in their order: `FUTURE SKEW`.
    pub fn expect(&mut self, words: &str) -> Parsed<Span> {
        let start = self.here();
        for word in words.split(' ') {
            if self.eat(word) {
                continue;
            }
            let error = self.expected(&format!("`{word}`"), &[word]);
            if !self.mends || self.misspelt(&[word]).is_none() {
                return Err(error);
            }
            self.errors.push(error);
            self.skip(1);
        }
        Ok(start.to(self.last()))
    }

    pub fn expect_punct(&mut self, kind: Tok) -> Parsed<Span> {
        if self.eat_punct(kind.clone()) {
            return Ok(self.last());
        }
        Err(self.expected(&format!("`{kind}`"), &[]))
    }

    pub fn expect_end(&self, clauses: &[&str]) -> Parsed<()> {
        if self.peek().is_none() {
            return Ok(());
        }
        let what = if clauses.is_empty() {
            "`;`".to_owned()
        } else {
            format!("{} or `;`", clauses.join(", "))
        };
        Err(self.expected(&what, clauses))
    }

    pub fn name(&mut self, what: &str) -> Parsed<Name> {
        match self.peek() {
            Some(Token {
                kind: Tok::Word(word),
                span,
                ..
            }) => {
                self.at += 1;
                Ok(Name {
                    text: word.value.clone(),
                    quoted: word.quote_style.is_some(),
                    span: *span,
                })
            }
            _ => Err(self.expected(what, &[])),
        }
    }

    pub fn string(&mut self, what: &str) -> Parsed<At<String>> {
        match self.peek() {
            Some(Token {
                kind: Tok::SingleQuotedString(text),
                span,
                ..
            }) => {
                self.at += 1;
                Ok(At::new(text.clone(), *span))
            }
            _ => Err(self.expected(&format!("{what} in single quotes"), &[])),
        }
    }

    pub fn count(&mut self, what: &str) -> Parsed<At<u32>> {
        if let Some(Token {
            kind: Tok::Number(digits, _),
            span,
            ..
        }) = self.peek()
        {
            return match digits.parse::<u32>() {
                Ok(count) if count > 0 => {
                    self.at += 1;
                    Ok(At::new(count, *span))
                }
                _ => Err(Diagnostic::new(
                    format!("{what} must be a whole number from 1 up"),
                    *span,
                )),
            };
        }
        Err(self.expected(what, &[]))
    }

    /// `( a, b )`; one that mends leaves out the items that are wrong.
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect_punct(Tok::LParen)
            .map_err(|error| error.help("write the list in parentheses"))?;
        let mut items = Vec::new();
        if self.eat_punct(Tok::RParen) {
            return Ok(items);
        }
        loop {
            items.extend(self.item(&mut item)?);
            if self.eat_punct(Tok::RParen) {
                return Ok(items);
            }
            if self.eat_punct(Tok::Comma) {
                continue;
            }
            let error = self.expected("`,` or `)`", &[]);
            if !self.mends || self.peek().is_none() {
                return Err(error);
            }
            // What follows is an item whose comma is missing, or the rest of the one before.
            self.errors.push(error);
            let (start, before) = (self.at, self.errors.len());
            match item(self) {
                Ok(next) => items.push(next),
                Err(_) => {
                    self.errors.truncate(before);
                    self.at = start;
                }
            }
            self.skip_item();
            if self.eat_punct(Tok::RParen) {
                return Ok(items);
            }
            if !self.eat_punct(Tok::Comma) {
                return Ok(items);
            }
        }
    }

    /// `INTERVAL '10' SECOND`, `INTERVAL '1 minute'`: milliseconds.
    pub fn interval(&mut self) -> Parsed<At<i64>> {
        let start = self.here();
        if !self.eat("INTERVAL") {
            let misspelt = self.mends && self.misspelt(&["INTERVAL"]).is_some();
            let error = self.expected("`INTERVAL`", &["INTERVAL"]);
            if !misspelt {
                let text = self.peek().and_then(|token| match &token.kind {
                    Tok::SingleQuotedString(text) if duration::parse(text).is_ok() => Some(text.as_str()),
                    _ => None,
                });
                return Err(error.help(format!("write INTERVAL '{}'", text.unwrap_or("10 seconds"))));
            }
            self.errors.push(error);
            self.skip(1);
        }
        let negative = self.eat_punct(Tok::Minus);
        let (mut text, span) = match self.next().map(|token| (&token.kind, token.span)) {
            Some((Tok::SingleQuotedString(text), span)) => (text.clone(), span),
            Some((Tok::Number(text, _), span)) => (text.clone(), span),
            _ => {
                self.at = self.at.saturating_sub(1);
                return Err(self
                    .expected("a length of time", &[])
                    .help("write INTERVAL '10' SECOND"));
            }
        };
        let unit = self
            .peek()
            .and_then(Token::word)
            .filter(|word| word.quote_style.is_none());
        if let Some(unit) = unit.filter(|unit| duration::is_unit(&unit.value)) {
            text.push(' ');
            text.push_str(&unit.value);
            self.at += 1;
        } else if let Some(token) = self
            .peek()
            .filter(|token| is_no_unit(token) && text.parse::<f64>().is_ok())
        {
            let message = format!("expected a unit of time such as SECOND, found `{}`", token.kind);
            let near = token.word().and_then(|word| did_you_mean(&word.value, duration::UNITS));
            return Err(Diagnostic::new(message, token.span).help_opt(near));
        }
        let ms = duration::parse(&text).map_err(|reason| {
            let near = duration::misspelt(&text).map(|unit| format!("did you mean `{unit}`?"));
            Diagnostic::new(reason, span)
                .help(near.unwrap_or_else(|| "write INTERVAL '10' SECOND or INTERVAL '1 minute'".into()))
        })?;
        Ok(At::new(if negative { -ms } else { ms }, start.to(self.last())))
    }

    /// An interval that must be longer than nothing.
    pub fn positive_interval(&mut self, what: &str) -> Parsed<At<i64>> {
        let interval = self.interval()?;
        if interval.value <= 0 {
            return Err(Diagnostic::new(
                format!("{what} must be longer than zero"),
                interval.span,
            ));
        }
        Ok(interval)
    }

    /// What stood here instead of what was wanted, with the nearest of the words that could have stood here.
    pub fn expected(&self, what: &str, words: &[&str]) -> Diagnostic {
        let Some(token) = self.peek() else {
            return Diagnostic::new(format!("expected {what}, found the end of the statement"), self.here());
        };
        let near = self.misspelt(words).map(|word| format!("did you mean `{word}`?"));
        Diagnostic::new(format!("expected {what}, found `{}`", token.kind), token.span).help_opt(near)
    }

    /// The first word of the one of `words` that the next token seems to mean.
    fn misspelt<'w>(&self, words: &[&'w str]) -> Option<&'w str> {
        let word = self.peek().and_then(Token::word)?;
        let heads = words.iter().filter_map(|words| words.split(' ').next());
        let near = nearest(&word.value, heads);
        near.filter(|_| !words.iter().any(|known| known.eq_ignore_ascii_case(&word.value)))
    }

    /// Tokens up to the first of `words` outside parentheses, or to the end.
    pub fn until(&mut self, words: &[&str]) -> &'t [Token] {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(token) = self.peek() {
            match token.kind {
                Tok::LParen => depth += 1,
                Tok::RParen => depth = depth.saturating_sub(1),
                _ if depth == 0 && words.iter().any(|word| token.is_word(word)) => break,
                _ => {}
            }
            self.at += 1;
        }
        &self.tokens[start..self.at]
    }
}
