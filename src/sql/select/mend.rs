//! A SELECT with mistakes, read as far as it can be: misspelt keywords are read as what they mean, and a part that is no expression is
//! left out, so that the others are checked.

use std::ops::Range;

use datafusion::sql::sqlparser::{ast::Query, tokenizer::Token as Tok};

use super::{parse, tokens_span};
use crate::{
    diagnostic::{Diagnostic, nearest},
    text::{LineMap, Token},
};

/// Words that end the table in FROM or what follows it.
const CLAUSES: [&str; 6] = ["WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "UNION"];
/// What else may stand behind a table or its alias.
const BEHIND_TABLES: [&str; 13] = [
    "AS",
    "JOIN",
    "LEFT",
    "RIGHT",
    "INNER",
    "FULL",
    "CROSS",
    "OUTER",
    "ON",
    "FOR",
    "INTERSECT",
    "EXCEPT",
    "NATURAL",
];
/// Words between operands; a misspelt one looks like the end of the expression.
const OPERATORS: [&str; 16] = [
    "AND", "OR", "AS", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "NOT", "FILTER", "OVER", "WHEN", "THEN", "ELSE", "END",
    "WITHIN",
];
/// Parts of one SELECT that are left out, after which it is given up.
const LEFT_OUT_MAX: usize = 20;

/// Depth in parentheses of each token; a parenthesis is as deep as what stands around it.
fn depths(tokens: &[Token]) -> Vec<usize> {
    let mut depth = 0usize;
    let step = |token: &Token| {
        if token.kind == Tok::RParen {
            depth = depth.saturating_sub(1);
        }
        let own = depth;
        depth += usize::from(token.kind == Tok::LParen);
        own
    };
    tokens.iter().map(step).collect()
}

fn unquoted(token: &Token) -> Option<&str> {
    let word = token.word()?;
    word.quote_style.is_none().then_some(word.value.as_str())
}

fn is_any(token: &Token, words: &[&str]) -> bool {
    words.iter().any(|word| token.is_word(word))
}

/// Whether an operand may end with this token.
pub(crate) fn ends_operand(token: &Token) -> bool {
    match &token.kind {
        Tok::Word(_) => {
            !is_any(token, &OPERATORS) && !is_any(token, &CLAUSES) && !is_any(token, &["FROM", "BY", "SELECT"])
        }
        Tok::RParen | Tok::RBracket | Tok::Number(..) | Tok::SingleQuotedString(_) | Tok::Mul => true,
        _ => false,
    }
}

/// The tokens with misspelt clause keywords put right, where nothing else can have been meant.
pub(crate) fn keywords(tokens: &[Token], errors: &mut Vec<Diagnostic>) -> Vec<Token> {
    let mut out = tokens.to_vec();
    let depths = depths(tokens);
    let mut mend = |at: usize, meant: &str, out: &mut Vec<Token>| {
        let error = Diagnostic::new(format!("unknown keyword `{}`", out[at].kind), out[at].span);
        errors.push(error.help(format!("did you mean `{meant}`?")));
        out[at] = out[at].keyword(meant);
    };
    let top = |at: usize| depths[at] == 0;
    if !(0..out.len()).any(|at| top(at) && out[at].is_word("FROM")) {
        let near =
            |at: &usize| top(*at) && unquoted(&tokens[*at]).is_some_and(|word| nearest(word, ["FROM"]).is_some());
        // A name is what follows FROM; an alias of the last column is what is followed by nothing or by a clause.
        let named = |at: &usize| {
            tokens
                .get(at + 1)
                .is_some_and(|next| next.word().is_some() && !is_any(next, &CLAUSES))
        };
        if let Some(at) = (1..out.len()).filter(near).find(named) {
            mend(at, "FROM", &mut out);
        }
    }
    let Some(from) = (0..out.len()).rfind(|at| top(*at) && out[*at].is_word("FROM")) else {
        return out;
    };
    for at in from + 2..out.len() {
        let Some(word) = unquoted(&out[at])
            .filter(|_| top(at) && ends_operand(&out[at]))
            .map(str::to_owned)
        else {
            continue;
        };
        let next = out.get(at + 1).cloned();
        if next.as_ref().is_some_and(|next| next.is_word("BY")) {
            if let Some(meant) = nearest(&word, ["GROUP", "ORDER", "PARTITION"]).filter(|meant| *meant != "PARTITION") {
                mend(at, meant, &mut out);
            }
            continue;
        }
        if out[at - 1].is_word("GROUP") {
            if let Some(meant) = nearest(&word, ["BY"]) {
                mend(at, meant, &mut out);
            }
            continue;
        }
        let Some(meant) = nearest(&word, ["WHERE", "HAVING"]).filter(|_| ends_operand(&out[at - 1])) else {
            continue;
        };
        // An alias of a table is followed by another clause, or by nothing.
        let alias = next.is_none_or(|next| {
            is_any(&next, &CLAUSES) || is_any(&next, &BEHIND_TABLES) || matches!(next.kind, Tok::Comma | Tok::RParen)
        });
        if !alias {
            mend(at, meant, &mut out);
        }
    }
    out
}

/// What a part of a SELECT is, which decides what may stand in its place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Item,
    Condition,
    Group,
    Other,
}

/// The parts of a SELECT, each without what parts it from the others.
fn parts(tokens: &[Token]) -> Vec<(Part, Range<usize>)> {
    let depths = depths(tokens);
    let mut found = Vec::new();
    let (mut part, mut start) = (Part::Other, 0);
    let mut at = 0;
    while at < tokens.len() {
        let token = &tokens[at];
        let next = |word: &str| tokens.get(at + 1).is_some_and(|next| next.is_word(word));
        let distinct_from = token.is_word("FROM") && at > 0 && tokens[at - 1].is_word("DISTINCT");
        let (begins, words) = match depths[at] {
            0 if token.is_word("SELECT") => (Some(Part::Item), 1),
            0 if token.is_word("FROM") && !distinct_from => (Some(Part::Other), 1),
            0 if token.is_word("WHERE") || token.is_word("HAVING") => (Some(Part::Condition), 1),
            0 if token.is_word("GROUP") && next("BY") => (Some(Part::Group), 2),
            0 if is_any(token, &["ORDER", "LIMIT", "UNION"]) => (Some(Part::Other), 1),
            0 if token.kind == Tok::Comma => (Some(part), 1),
            _ => (None, 1),
        };
        if let Some(begins) = begins {
            found.push((part, start..at));
            (part, start) = (begins, at + words);
        }
        at += words;
    }
    found.push((part, start..tokens.len()));
    found
}

/// Tokens of a query → its syntax tree, without the parts that are no expressions; these are in `errors`.
pub(crate) fn parse_mending(tokens: Vec<Token>, lines: &LineMap<'_>, errors: &mut Vec<Diagnostic>) -> Option<Query> {
    let mut tokens = tokens;
    for _ in 0..LEFT_OUT_MAX {
        let error = match parse(&tokens, lines) {
            Ok(query) => return Some(query),
            Err(error) => error,
        };
        if let Some(at) = misspelt(&mut tokens, &error, lines) {
            errors.push(at);
            continue;
        }
        let error = without_end(&tokens, &error).unwrap_or(error);
        let left_out = leave_out(&mut tokens, &error);
        errors.push(error);
        if !left_out {
            return None;
        }
    }
    None
}

/// Puts a misspelt keyword right where the parser stopped, or before, if it gets further then.
fn misspelt(tokens: &mut [Token], error: &Diagnostic, lines: &LineMap<'_>) -> Option<Diagnostic> {
    let (stopped, count) = (place(tokens, error), tokens.len());
    let candidates = [Some(stopped), stopped.checked_sub(1)].into_iter().flatten();
    for at in candidates.filter(|at| *at < count) {
        let token = tokens[at].clone();
        let word = unquoted(&token).filter(|_| !is_operator(&token) && !is_any(&token, &CLAUSES));
        let Some(meant) =
            word.and_then(|word| nearest(word, OPERATORS.into_iter().chain(["WHERE", "DISTINCT", "NULL"])))
        else {
            continue;
        };
        tokens[at] = token.keyword(meant);
        let further = match parse(tokens, lines) {
            Ok(_) => true,
            Err(next) => next.span.start > error.span.start,
        };
        if further {
            let error = Diagnostic::new(format!("unknown keyword `{}`", token.kind), token.span);
            return Some(error.help(format!("did you mean `{meant}`?")));
        }
        tokens[at] = token;
    }
    None
}

/// The token that an error is at; behind the last one, where it is at the end.
fn place(tokens: &[Token], error: &Diagnostic) -> usize {
    let at = tokens.iter().position(|token| token.span.start >= error.span.start);
    at.unwrap_or(tokens.len())
}

/// Whether a word stands between operands.
pub(crate) fn is_operator(token: &Token) -> bool {
    is_any(token, &OPERATORS)
}

/// A CASE without END reads on into whatever follows.
fn without_end(tokens: &[Token], error: &Diagnostic) -> Option<Diagnostic> {
    let mut parts = parts(tokens).into_iter().map(|(_, range)| &tokens[range]);
    parts.find_map(|part| {
        let mut open = Vec::new();
        for token in part {
            if token.is_word("CASE") {
                open.push(token.span);
            } else if token.is_word("END") {
                open.pop();
            }
        }
        let case = open.pop().filter(|case| case.start <= error.span.start)?;
        Some(Diagnostic::new("this CASE has no END", case).help("write CASE WHEN … THEN … ELSE … END"))
    })
}

/// Begins the name of a column that has none, for it is left out.
pub(super) const UNNAMED: &str = "column at ";

/// Puts something that is always right in the place of the part that an error is in; whether there is one.
fn leave_out(tokens: &mut Vec<Token>, error: &Diagnostic) -> bool {
    let at = place(tokens, error);
    let holds = |range: &Range<usize>| range.contains(&at) || (range.end == at && range.start < range.end);
    let found = parts(tokens)
        .into_iter()
        .rfind(|(part, range)| *part != Part::Other && holds(range));
    let Some((part, range)) = found else {
        return false;
    };
    let here = &tokens[range.clone()];
    let first = here.first().cloned();
    let Some(first) = first.filter(|first| !is_placeholder(first)) else {
        return false;
    };
    let mut instead = vec![match part {
        Part::Condition => first.keyword("TRUE"),
        _ => first.keyword("NULL"),
    }];
    // A column keeps its name, which others may use.
    let depths = depths(here);
    let names = |at: &usize| depths[*at] == 0 && here[*at].is_word("AS") && here[*at + 1].word().is_some();
    let name = (0..here.len() - 1).rfind(names).filter(|_| part == Part::Item);
    match name {
        Some(at) => instead.extend_from_slice(&here[at..at + 2]),
        _ if part == Part::Item => {
            instead.push(first.replaced(Tok::make_word(&format!("{UNNAMED}{}", first.span.start), Some('"'))))
        }
        _ => {}
    }
    instead[0].span = tokens_span(here);
    tokens.splice(range, instead);
    true
}

fn is_placeholder(token: &Token) -> bool {
    token.is_word("NULL") || token.is_word("TRUE")
}
