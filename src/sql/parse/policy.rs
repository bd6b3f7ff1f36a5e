//! CREATE POLICY.

use engine::spec::{ActionSpec, Mode};

use super::{Once, Values, expect_windows, not_negative, settings, topic, word_help};
use crate::{
    ast::Policy,
    diagnostic::{Diagnostic, nearest, one_of},
    select::{ends_operand, is_operator},
    text::{Cursor, Parsed, Token},
};

const CLAUSES: [&str; 11] = [
    "WHEN",
    "FOR",
    "CLEAR WHEN",
    "COOLDOWN",
    "LIMIT",
    "DO",
    "TARGET",
    "PARAMS",
    "EXPIRES AFTER",
    "MODE",
    "INTO",
];
/// Words that end a condition.
const ENDS: [&str; 10] = [
    "FOR", "CLEAR", "COOLDOWN", "LIMIT", "DO", "TARGET", "PARAMS", "EXPIRES", "MODE", "INTO",
];

/// Words that begin a clause; FOR belongs to the one before.
const HEADS: [&str; 10] = [
    "WHEN", "CLEAR", "COOLDOWN", "LIMIT", "DO", "TARGET", "PARAMS", "EXPIRES", "MODE", "INTO",
];

pub fn policy(cursor: &mut Cursor<'_>) -> Parsed<Policy> {
    let name = cursor.name("a name for the policy")?;
    cursor.expect("ON")?;
    let on = cursor.name("the detector that it answers")?;
    let mut policy = Policy {
        name,
        on,
        when: None,
        for_windows: None,
        clear: None,
        clear_windows: None,
        cooldown_ms: None,
        limits: Vec::new(),
        action: None,
        target: None,
        params: Vec::new(),
        expires_after_ms: None,
        mode: None,
        into: None,
        broken: false,
        span: cursor.here(),
    };
    let mut seen = Once::default();
    while cursor.peek().is_some() {
        if let Err(error) = clause(cursor, &mut policy, &mut seen) {
            cursor.skip_to(&HEADS, error);
        }
    }
    Ok(policy)
}

fn clause(cursor: &mut Cursor<'_>, policy: &mut Policy, seen: &mut Once) -> Parsed<()> {
    let start = cursor.here();
    if cursor.eat("WHEN") {
        seen.first("WHEN", start)?;
        policy.when = Some(condition(cursor)?);
        if cursor.eat("FOR") {
            policy.for_windows = Some(k_of_n(cursor)?);
        }
    } else if cursor.eat("FOR") {
        return Err(Diagnostic::new(
            "FOR … WINDOWS belongs behind WHEN or CLEAR WHEN",
            start,
        ));
    } else if cursor.eat("CLEAR") {
        cursor.expect("WHEN")?;
        seen.first("CLEAR WHEN", start)?;
        policy.clear = Some(condition(cursor)?);
        if cursor.eat("FOR") {
            policy.clear_windows = Some(cursor.count("a number of windows")?.value);
            expect_windows(cursor)?;
        }
    } else if cursor.eat("COOLDOWN") {
        seen.first("COOLDOWN", start)?;
        policy.cooldown_ms = Some(not_negative(cursor.interval()?)?.value);
    } else if cursor.eat("LIMIT") {
        let count = cursor.count("a number of actions")?.value;
        if !cursor.eat("ACTION") {
            cursor.expect("ACTIONS")?;
        }
        cursor.expect("PER")?;
        policy
            .limits
            .push((count, cursor.positive_interval("the span of a limit")?.value));
    } else if cursor.eat("DO") {
        seen.first("DO", start)?;
        policy.action = Some(action(cursor)?);
    } else if cursor.eat("TARGET") {
        seen.first("TARGET", start)?;
        policy.target = Some(cursor.name("a KEY column of the detector")?);
    } else if cursor.eat("PARAMS") {
        seen.first("PARAMS", start)?;
        policy.params = settings(cursor, Values::Parameter)?;
    } else if cursor.eat("EXPIRES") {
        cursor.expect("AFTER")?;
        seen.first("EXPIRES AFTER", start)?;
        policy.expires_after_ms = Some(cursor.positive_interval("an expiry")?.value);
    } else if cursor.eat("MODE") {
        seen.first("MODE", start)?;
        policy.mode = Some(mode(cursor)?);
    } else if cursor.eat("INTO") {
        seen.first("INTO", start)?;
        policy.into = Some(topic(cursor)?);
    } else {
        cursor.mend(&one_of(CLAUSES), &CLAUSES)?;
    }
    Ok(())
}

fn condition(cursor: &mut Cursor<'_>) -> Parsed<Vec<Token>> {
    let start = cursor.position();
    let mut tokens = cursor.until(&ENDS);
    // A word behind an operand that is no operator begins a clause, even if it is misspelt.
    let begins = |pair: &[Token]| {
        let near = pair[1].word().is_some_and(|word| nearest(&word.value, HEADS).is_some());
        near && ends_operand(&pair[0]) && !is_operator(&pair[1])
    };
    if let Some(at) = tokens.windows(2).position(begins) {
        tokens = &tokens[..=at];
        cursor.back_to(start + at + 1);
    }
    if tokens.is_empty() {
        return Err(cursor.expected("a condition", &[]));
    }
    Ok(tokens.to_vec())
}

/// `3 OF 5 WINDOWS`; `3 WINDOWS` is 3 of 3.
fn k_of_n(cursor: &mut Cursor<'_>) -> Parsed<(crate::text::At<u32>, crate::text::At<u32>)> {
    let k = cursor.count("a number of windows")?;
    let mut n = k.clone();
    if cursor.eat("OF") {
        n = cursor.count("a number of windows")?;
    }
    expect_windows(cursor)?;
    if k.value > n.value {
        return Err(Diagnostic::new(
            format!("{} of {} windows can never be met", k.value, n.value),
            k.span.to(n.span),
        )
        .help(format!("write FOR {} OF {} WINDOWS", n.value, k.value)));
    }
    if n.value > 1_000 {
        return Err(Diagnostic::new("at most 1000 windows are remembered", n.span));
    }
    Ok((k, n))
}

fn action(cursor: &mut Cursor<'_>) -> Parsed<ActionSpec> {
    if cursor.eat("ACTION") {
        return Ok(ActionSpec::Fixed(verb(cursor)?));
    }
    if cursor.eat("LADDER") {
        let start = cursor.here();
        let steps = cursor.list(verb)?;
        if steps.is_empty() {
            return Err(Diagnostic::new(
                "a ladder has at least one step",
                start.to(cursor.last()),
            ));
        }
        return Ok(ActionSpec::Ladder(steps));
    }
    if cursor.eat("CHOOSE") {
        return Ok(ActionSpec::Choose);
    }
    let forms = ["ACTION", "LADDER", "CHOOSE"];
    let error = cursor.expected("ACTION 'name', LADDER (…) or CHOOSE", &forms);
    let word = cursor.peek().and_then(Token::word);
    Err(match word.filter(|_| error.help.is_none()) {
        Some(word) => error.help(format!("write DO ACTION '{}'", word.value.to_lowercase())),
        None => error,
    })
}

/// The name of an action, quoted or bare.
fn verb(cursor: &mut Cursor<'_>) -> Parsed<String> {
    let verb = match cursor.peek().and_then(Token::word) {
        Some(_) => {
            let name = cursor.name("an action")?;
            crate::text::At::new(name.text, name.span)
        }
        None => cursor.string("the name of an action")?,
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if verb.value.is_empty() || verb.value.len() > 64 || !verb.value.chars().all(legal) {
        return Err(
            Diagnostic::new(format!("`{}` is not a name of an action", verb.value), verb.span)
                .help("letters, digits, `_`, `-` and `.`, at most 64 of them"),
        );
    }
    Ok(verb.value)
}

fn mode(cursor: &mut Cursor<'_>) -> Parsed<Mode> {
    let name = cursor.name("OFF, SHADOW, APPROVE or AUTO")?;
    let modes = ["OFF", "SHADOW", "APPROVE", "AUTO"];
    match name.text.to_ascii_uppercase().as_str() {
        "OFF" => Ok(Mode::Off),
        "SHADOW" => Ok(Mode::Shadow),
        "APPROVE" => Ok(Mode::Approve),
        "AUTO" => Ok(Mode::Auto),
        other => Err(Diagnostic::new(format!("unknown mode `{}`", name.text), name.span)
            .help(word_help(other, &modes).unwrap_or_else(|| format!("use {}", one_of(modes))))),
    }
}
