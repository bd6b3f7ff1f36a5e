//! Tokens of the text with their place in bytes, and a cursor that parses statement heads from them.

use datafusion::sql::sqlparser::{
    dialect::GenericDialect,
    tokenizer::{Location, Span as TextSpan, Token as Tok, TokenWithSpan, Tokenizer, Word},
};

use crate::{
    diagnostic::{Diagnostic, Span, did_you_mean},
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

    /// Another token at this one's place.
    pub fn replaced(&self, kind: Tok) -> Self {
        Self { kind, ..self.clone() }
    }
}

pub(crate) fn tokenize(text: &str) -> Result<Vec<Token>, Diagnostic> {
    let lines = LineMap::new(text);
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| {
            let at = lines.offset(error.location);
            Diagnostic::new(lower_first(&error.message), Span::new(at, text.len().min(at + 1)))
        })?;
    let kept = tokens
        .into_iter()
        .filter(|token| !matches!(token.token, Tok::Whitespace(_)));
    Ok(kept
        .map(|token| Token {
            span: lines.span(token.span),
            kind: token.token,
            location: token.span,
        })
        .collect())
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

pub(crate) type Parsed<T> = Result<T, Diagnostic>;

/// Walks one statement.
pub(crate) struct Cursor<'t> {
    tokens: &'t [Token],
    at: usize,
}

impl<'t> Cursor<'t> {
    pub fn new(tokens: &'t [Token]) -> Self {
        Self { tokens, at: 0 }
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
        self.peek().is_some_and(|token| token.is_word(word))
    }

    pub fn is_at(&self, ahead: usize, word: &str) -> bool {
        self.tokens
            .get(self.at + ahead)
            .is_some_and(|token| token.is_word(word))
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
            if !self.eat(word) {
                return Err(self.expected(&format!("`{word}`"), &[word]));
            }
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

    /// `( a, b )`
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect_punct(Tok::LParen)?;
        let mut items = Vec::new();
        if self.eat_punct(Tok::RParen) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat_punct(Tok::RParen) {
                return Ok(items);
            }
            if !self.eat_punct(Tok::Comma) {
                return Err(self.expected("`,` or `)`", &[]));
            }
        }
    }

    /// `INTERVAL '10' SECOND`, `INTERVAL '1 minute'`: milliseconds.
    pub fn interval(&mut self) -> Parsed<At<i64>> {
        let start = self.here();
        if !self.eat("INTERVAL") {
            return Err(self
                .expected("`INTERVAL`", &["INTERVAL"])
                .help("write INTERVAL '10' SECOND"));
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
            .filter(|token| token.word().is_some() && text.parse::<f64>().is_ok())
        {
            let message = format!("expected a unit of time such as SECOND, found `{}`", token.kind);
            return Err(Diagnostic::new(message, token.span));
        }
        let ms = duration::parse(&text).map_err(|reason| {
            Diagnostic::new(reason, span).help("write INTERVAL '10' SECOND or INTERVAL '1 minute'")
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
        let diagnostic = Diagnostic::new(format!("expected {what}, found `{}`", token.kind), token.span);
        let heads = words.iter().filter_map(|words| words.split(' ').next());
        let near = token.word().and_then(|word| {
            let near = did_you_mean(&word.value, heads);
            near.filter(|_| !words.iter().any(|known| known.eq_ignore_ascii_case(&word.value)))
        });
        diagnostic.help_opt(near)
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
