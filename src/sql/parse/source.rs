//! CREATE SOURCE.

use datafusion::sql::sqlparser::tokenizer::Token as Tok;

use super::{Once, Values, not_negative, settings, word_help};
use crate::{
    ast::{Column, ColumnFrom, ColumnType, IdleTimeout, Source, Watermark},
    diagnostic::Diagnostic,
    text::{At, Cursor, Name, Parsed, Token},
};

pub fn source(cursor: &mut Cursor<'_>) -> Parsed<Source> {
    let name = cursor.name("a name for the source")?;
    let mut watermark = None;
    let mut columns = None;
    let mut primary_key = Vec::new();
    let mut unknown = Vec::new();
    if cursor.is_punct(&Tok::LParen) {
        columns = Some(column_list(cursor, &mut watermark, &mut primary_key, &mut unknown)?);
    }
    loop {
        if cursor.is("WATERMARK")
            && let Err(error) = watermark_once(cursor, &mut watermark)
        {
            cursor.skip_to(&["WITH"], error);
        }
        if cursor.eat("WITH") {
            break;
        }
        let clauses = ["WATERMARK FOR", "WITH (…)"];
        let selects = cursor.is("AS");
        cursor
            .mend(&clauses.join(" or "), &clauses)
            .map_err(|error| match selects {
                true => error.help("what is selected is a view: write CREATE FEATURE VIEW … AS SELECT …"),
                false => error,
            })?;
    }
    let options = settings(cursor, Values::Option)?;
    cursor.expect_end(&[])?;
    Ok(Source {
        name,
        columns,
        watermark,
        primary_key,
        options,
        broken: false,
        unknown,
        span: cursor.last(),
    })
}

fn column_list(
    cursor: &mut Cursor<'_>,
    watermark: &mut Option<Watermark>,
    primary_key: &mut Vec<Name>,
    unknown: &mut Vec<String>,
) -> Parsed<Vec<Column>> {
    let items = cursor.list(|cursor| {
        if cursor.is("WATERMARK") && cursor.is_at(1, "FOR") {
            watermark_once(cursor, watermark)?;
            return Ok(None);
        }
        if cursor.is("PRIMARY") && cursor.is_at(1, "KEY") {
            cursor.expect("PRIMARY KEY")?;
            *primary_key = cursor.list(|cursor| cursor.name("a column"))?;
            if cursor.eat("NOT") {
                cursor.expect("ENFORCED")?;
            }
            return Ok(None);
        }
        let name = cursor.peek().and_then(Token::word).map(|word| word.value.clone());
        column(cursor).map(Some).inspect_err(|_| unknown.extend(name))
    })?;
    Ok(items.into_iter().flatten().collect())
}

fn watermark_once(cursor: &mut Cursor<'_>, watermark: &mut Option<Watermark>) -> Parsed<()> {
    let start = cursor.here();
    let parsed = parse_watermark(cursor)?;
    if watermark.is_some() {
        return Err(Diagnostic::new("a source has one watermark", start.to(cursor.last())));
    }
    *watermark = Some(parsed);
    Ok(())
}

fn parse_watermark(cursor: &mut Cursor<'_>) -> Parsed<Watermark> {
    let start = cursor.expect("WATERMARK FOR")?;
    let column = cursor.name("the event time's column")?;
    cursor.expect("AS")?;
    let base = cursor.name("the event time's column")?;
    if base.text != column.text {
        return Err(Diagnostic::new(
            format!(
                "the watermark of `{}` must be computed from it, not from `{}`",
                column.text, base.text
            ),
            base.span,
        )
        .help(format!("write {0} - INTERVAL '5' SECOND", column.text)));
    }
    let mut delay_ms = 0;
    if cursor.eat_punct(Tok::Minus) {
        delay_ms = not_negative(cursor.interval()?)?.value;
    } else if cursor.is_punct(&Tok::Plus) {
        return Err(
            Diagnostic::new("a watermark is the event time less a delay", cursor.here())
                .help(format!("write {} - INTERVAL '5' SECOND", column.text)),
        );
    }
    let mut watermark = Watermark {
        column,
        delay_ms,
        idle: None,
        max_future_skew_ms: None,
        span: start,
    };
    let mut seen = Once::default();
    while cursor.is("IDLE")
        || cursor.is("MAX")
        || cursor.mend("IDLE TIMEOUT or MAX FUTURE SKEW", &["IDLE", "MAX"]).is_ok()
    {
        if let Err(error) = watermark_clause(cursor, &mut watermark, &mut seen) {
            cursor.errors.push(error);
            cursor.skip_clause(&["IDLE", "MAX", "WITH"]);
        }
    }
    watermark.span = start.to(cursor.last());
    Ok(watermark)
}

fn watermark_clause(cursor: &mut Cursor<'_>, watermark: &mut Watermark, seen: &mut Once) -> Parsed<()> {
    let clause = cursor.here();
    if cursor.eat("IDLE") {
        cursor.expect("TIMEOUT")?;
        seen.first("IDLE TIMEOUT", clause)?;
        watermark.idle = Some(if cursor.eat("NEVER") {
            IdleTimeout::Never
        } else {
            IdleTimeout::After {
                ms: cursor.positive_interval("an idle timeout")?.value,
            }
        });
    } else if cursor.eat("MAX") {
        cursor.expect("FUTURE SKEW")?;
        seen.first("MAX FUTURE SKEW", clause)?;
        watermark.max_future_skew_ms = Some(not_negative(cursor.interval()?)?.value);
    }
    Ok(())
}

fn column(cursor: &mut Cursor<'_>) -> Parsed<Column> {
    let name = cursor.name("a column or WATERMARK FOR")?;
    let data_type = column_type(cursor)?;
    let mut from = None;
    if cursor.eat("METADATA") {
        from = Some(ColumnFrom::Metadata(if cursor.eat("FROM") {
            cursor.string("what of the record it is, such as 'key',")?
        } else {
            At::new(name.text.clone(), name.span)
        }));
    } else if cursor.eat("FROM") || cursor.eat("PATH") {
        from = Some(ColumnFrom::Path(cursor.string("a path such as 'a.b.c'")?));
    }
    if cursor.is("NOT") || cursor.is("PRIMARY") || cursor.is("DEFAULT") {
        return Err(
            Diagnostic::new("columns have no constraints: a missing value is NULL", cursor.here())
                .help("filter in the view: WHERE column IS NOT NULL"),
        );
    }
    Ok(Column { name, data_type, from })
}

const TYPES: [&str; 8] = [
    "STRING",
    "DOUBLE",
    "FLOAT",
    "INT",
    "BIGINT",
    "BOOLEAN",
    "TIMESTAMP(3)",
    "VARCHAR",
];

/// Types of other systems, and what holds the same.
const OTHER_TYPES: [(&str, &str); 9] = [
    ("DECIMAL", "DOUBLE"),
    ("NUMERIC", "DOUBLE"),
    ("NUMBER", "DOUBLE, or BIGINT for whole numbers"),
    ("DATETIME", "TIMESTAMP(3)"),
    ("DATETIME64", "TIMESTAMP(3)"),
    ("DATE", "TIMESTAMP(3)"),
    ("TIME", "TIMESTAMP(3)"),
    ("ROW", "its fields as columns: name STRING FROM 'a.b'"),
    ("STRUCT", "its fields as columns: name STRING FROM 'a.b'"),
];

fn column_type(cursor: &mut Cursor<'_>) -> Parsed<At<ColumnType>> {
    let Some(word) = cursor.peek().and_then(Token::word) else {
        return Err(cursor.expected("a type", &[]).help(format!("use {}", TYPES.join(", "))));
    };
    let start = cursor.here();
    let word = word.value.to_ascii_uppercase();
    cursor.skip(1);
    let data_type = match word.as_str() {
        "STRING" | "TEXT" => ColumnType::Text,
        "VARCHAR" | "CHAR" => {
            if cursor.is_punct(&Tok::LParen) {
                cursor.list(|cursor| cursor.count("a length"))?;
            }
            ColumnType::Text
        }
        "DOUBLE" => {
            cursor.eat("PRECISION");
            ColumnType::Float
        }
        "FLOAT" | "REAL" | "FLOAT4" | "FLOAT8" => ColumnType::Float,
        "INT" | "INTEGER" | "BIGINT" | "SMALLINT" | "TINYINT" | "INT2" | "INT4" | "INT8" => ColumnType::Integer,
        "BOOLEAN" | "BOOL" => ColumnType::Boolean,
        "TIMESTAMP" | "TIMESTAMP_LTZ" | "TIMESTAMPTZ" => timestamp(cursor)?,
        "MAP" => map(cursor)?,
        _ => {
            let other = OTHER_TYPES.iter().find(|(name, _)| *name == word);
            let help = other
                .map(|(_, own)| format!("write {own}"))
                .or_else(|| word_help(&word, &TYPES));
            let help = help.unwrap_or_else(|| format!("use {}", TYPES.join(", ")));
            return Err(Diagnostic::new(format!("unknown type `{word}`"), start).help(help));
        }
    };
    Ok(At::new(data_type, start.to(cursor.last())))
}

/// `TIMESTAMP(3)`; without a precision, milliseconds.
fn timestamp(cursor: &mut Cursor<'_>) -> Parsed<ColumnType> {
    let mut precision = 3;
    if cursor.eat_punct(Tok::LParen) {
        precision = match cursor.peek().map(|token| &token.kind) {
            Some(Tok::Number(digits, _)) => match digits.as_str() {
                "0" => 0,
                "3" => 3,
                "6" => 6,
                "9" => 9,
                _ => {
                    return Err(
                        Diagnostic::new(format!("TIMESTAMP({digits}) is not supported"), cursor.here())
                            .help("use 0 for seconds, 3 for milliseconds, 6 for microseconds, 9 for nanoseconds"),
                    );
                }
            },
            _ => return Err(cursor.expected("0, 3, 6 or 9", &[])),
        };
        cursor.skip(1);
        cursor.expect_punct(Tok::RParen)?;
    }
    if cursor.is("WITH") || cursor.is("WITHOUT") {
        let without = cursor.is("WITHOUT");
        cursor.skip(1);
        if !without {
            cursor.eat("LOCAL");
        }
        cursor.expect("TIME ZONE")?;
    }
    Ok(ColumnType::Timestamp(precision))
}

/// `MAP<STRING, STRING>`: the record's headers.
fn map(cursor: &mut Cursor<'_>) -> Parsed<ColumnType> {
    cursor.expect_punct(Tok::Lt)?;
    cursor.expect("STRING")?;
    cursor.expect_punct(Tok::Comma)?;
    cursor.expect("STRING")?;
    cursor.expect_punct(Tok::Gt)?;
    Ok(ColumnType::Map)
}
