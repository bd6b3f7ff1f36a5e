//! `NAME WITH (parameter = value, …)` as written after USING in a pipeline.

use detector::Value;

use crate::error::Refused;

pub type Options = Vec<(String, Value)>;

pub fn parse(text: &str) -> Result<(String, Options), Refused> {
    let wrong = |what: &str| {
        Refused::new(format!(
            "--detector {text:?}: {what}, as in \"auto WITH (tier = 'lean')\""
        ))
    };
    let mut rest = text.trim();
    let name = word(&mut rest)
        .ok_or_else(|| wrong("a detector's name is missing"))?
        .to_ascii_lowercase();
    if rest.is_empty() {
        return Ok((name, Vec::new()));
    }
    match word(&mut rest) {
        Some(with) if with.eq_ignore_ascii_case("with") => {}
        _ => return Err(wrong("WITH should follow the name")),
    }
    let inside = rest
        .strip_prefix('(')
        .and_then(|rest| rest.trim_end().strip_suffix(')'))
        .ok_or_else(|| wrong("parameters stand in parentheses"))?;
    let mut rest = inside.trim();
    let mut options = Vec::new();
    while !rest.is_empty() {
        let parameter = match quoted(&mut rest) {
            Some(parameter) => parameter,
            None => word(&mut rest).ok_or_else(|| wrong("a parameter's name is missing"))?,
        };
        rest = rest
            .strip_prefix('=')
            .ok_or_else(|| wrong(&format!("= should follow {parameter}")))?
            .trim_start();
        let value = value(&mut rest).ok_or_else(|| wrong(&format!("{parameter} has no value")))?;
        options.push((parameter, value));
        rest = match rest.strip_prefix(',') {
            Some(more) if !more.trim().is_empty() => more.trim_start(),
            Some(_) => return Err(wrong("a parameter should follow the comma")),
            None if rest.is_empty() => rest,
            None => return Err(wrong("a comma should stand between parameters")),
        };
    }
    Ok((name, options))
}

fn word(rest: &mut &str) -> Option<String> {
    let end = rest
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
        .unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after.trim_start();
    (!word.is_empty()).then(|| word.to_owned())
}

fn quoted(rest: &mut &str) -> Option<String> {
    let inside = rest.strip_prefix('\'')?;
    let end = inside.find('\'')?;
    *rest = inside[end + 1..].trim_start();
    Some(inside[..end].to_owned())
}

fn value(rest: &mut &str) -> Option<Value> {
    if rest.starts_with('\'') {
        return quoted(rest).map(Value::Text);
    }
    let end = rest.find([',', ')']).unwrap_or(rest.len());
    let (bare, after) = rest.split_at(end);
    *rest = after;
    match bare.trim() {
        "" => None,
        bare if bare.eq_ignore_ascii_case("true") => Some(Value::Bool(true)),
        bare if bare.eq_ignore_ascii_case("false") => Some(Value::Bool(false)),
        bare => Some(bare.parse().map_or_else(|_| Value::Text(bare.into()), Value::Number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_parameters() {
        assert_eq!(parse("auto").expect("a name"), ("auto".into(), vec![]));
        let (name, options) =
            parse(" spot with ('q' = 1e-3, depth=20 , timeout = '30 s', learned = TRUE)").expect("all forms");
        assert_eq!(name, "spot");
        assert_eq!(
            options,
            [
                ("q".into(), Value::Number(1e-3)),
                ("depth".into(), Value::Number(20.0)),
                ("timeout".into(), Value::Text("30 s".into())),
                ("learned".into(), Value::Bool(true)),
            ]
        );
        assert_eq!(parse("auto WITH ()").expect("no parameters"), ("auto".into(), vec![]));
    }

    #[test]
    fn mistakes_are_told() {
        for wrong in [
            "",
            "auto lean",
            "auto WITH",
            "auto WITH (tier)",
            "auto WITH (tier =)",
            "auto WITH (a = 1,)",
            "auto WITH (a = 1 b = 2",
            "auto WITH (a = 'x' b = 1)",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
