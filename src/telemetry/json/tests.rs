use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit, TimestampMillisecondType},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{Decoder, Format, RecordMeta, Rows, dictionary};

/// The columns of the tests: one per kind, one of them nested, one in an object with an unread neighbour.
fn decoder() -> Decoder {
    let columns = Schema::new(vec![
        Field::new("service", dictionary(), true),
        Field::new("note", DataType::Utf8, true),
        Field::new("ms", DataType::Float64, true),
        Field::new("n", DataType::Int64, true),
        Field::new("ok", DataType::Boolean, true),
        Field::new(
            "ts",
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            true,
        ),
        Field::new("pod", dictionary(), true),
    ]);
    let mut paths = vec![None; 6];
    paths.push(Some(vec!["k8s".to_owned(), "pod".to_owned()]));
    Decoder::new(Format::Json, Arc::new(columns), &paths).unwrap()
}

fn push(decoder: &mut Decoder, text: &str) -> Result<usize, String> {
    decoder
        .push(text.as_bytes(), &RecordMeta::new(7, 8))
        .map_err(|reject| reject.reason)
}

/// A row as JSON, NULL left out.
fn row(rows: &Rows, index: usize) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    for (field, array) in rows.batch.schema().fields().iter().zip(rows.batch.columns()) {
        if array.is_null(index) {
            continue;
        }
        let value = match field.data_type() {
            DataType::Dictionary(..) => {
                let strings = array.as_dictionary::<arrow::datatypes::Int32Type>();
                let code = strings.keys().value(index) as usize;
                json!(strings.values().as_string::<i32>().value(code))
            }
            DataType::Utf8 => json!(array.as_string::<i32>().value(index)),
            DataType::Float64 => json!(array.as_primitive::<Float64Type>().value(index)),
            DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(index)),
            DataType::Boolean => json!(array.as_boolean().value(index)),
            _ => json!(array.as_primitive::<TimestampMillisecondType>().value(index)),
        };
        values.insert(field.name().clone(), value);
    }
    values
}

/// What the rules say about a parsed document: the row, or that it is rejected.
fn reference(document: &Value) -> Option<BTreeMap<String, Value>> {
    let object = document.as_object()?;
    let mut values = BTreeMap::new();
    for name in ["service", "note", "ms", "n", "ok", "ts"] {
        let value = object.get(name).unwrap_or(&Value::Null);
        let read = match (name, value) {
            (_, Value::Null) => continue,
            ("service" | "note", Value::String(_)) | ("ok", Value::Bool(_)) => value.clone(),
            ("ms", Value::Number(number)) => json!(number.as_f64()?),
            ("n", Value::Number(number)) => json!(integer(number)?),
            ("ts", Value::Number(number)) => json!(number.as_i64().or_else(|| in_range(number.as_f64()?.floor()))?),
            _ => return None,
        };
        values.insert(name.to_owned(), read);
    }
    match object.get("k8s") {
        None | Some(Value::Null) => {}
        Some(Value::Object(nested)) => match nested.get("pod") {
            None | Some(Value::Null) => {}
            Some(Value::String(pod)) => {
                values.insert("pod".to_owned(), json!(pod));
            }
            Some(_) => return None,
        },
        Some(_) => return None,
    }
    Some(values)
}

fn integer(number: &serde_json::Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let value = number.as_f64()?;
        (value.fract() == 0.0).then(|| in_range(value))?
    })
}

fn in_range(value: f64) -> Option<i64> {
    (value.abs() < 9.2e18).then_some(value as i64)
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        (-1000i64..1000).prop_map(|value| json!(value)),
        (-1e6..1e6).prop_map(|value: f64| json!(value)),
        any::<f64>()
            // Between them a double's digits and its value differ as integers.
            .prop_filter("finite", |value| value.is_finite()
                && !(1e15..1e19).contains(&value.abs()))
            .prop_map(|value| json!(value)),
        string().prop_map(|value| json!(value)),
    ]
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z.-]{0,24}",
        "[a-z\"\\\\/\u{8}\u{c}\n\r\t\u{1}é漢🦀]{0,12}",
        any::<String>(),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::vec((string(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A value that mostly fits the column.
fn value_for(name: &'static str) -> BoxedStrategy<Value> {
    let fitting = match name {
        "service" | "note" | "pod" => string().prop_map(|value| json!(value)).boxed(),
        "ms" => prop_oneof![
            (-1e6..1e6).prop_map(|value: f64| json!(value)),
            any::<i64>().prop_map(|value| json!(value)),
        ]
        .boxed(),
        "ok" => any::<bool>().prop_map(|value| json!(value)).boxed(),
        _ => prop_oneof![any::<i64>(), -5i64..5]
            .prop_map(|value| json!(value))
            .boxed(),
    };
    prop_oneof![12 => fitting, 1 => Just(Value::Null), 1 => scalar(), 1 => any_value()].boxed()
}

/// Objects in any order of keys, some keys missing, some unknown, as text.
fn document() -> impl Strategy<Value = String> {
    let names = ["service", "note", "ms", "n", "ok", "ts"];
    let known: Vec<_> = names
        .into_iter()
        .map(|name| (Just(name.to_owned()), value_for(name), proptest::bool::weighted(0.9)))
        .collect();
    let k8s = prop_oneof![
        4 => value_for("pod").prop_map(|pod| json!({ "node": [1, {"a": null}], "pod": pod })),
        1 => any_value(),
    ];
    let unknown = proptest::collection::vec((string(), any_value()), 0..3);
    (known, proptest::option::of(k8s), unknown, any::<u64>(), any::<bool>()).prop_map(
        |(known, k8s, unknown, seed, pretty)| {
            let kept = known.into_iter().filter(|(_, _, kept)| *kept);
            let mut pairs: Vec<_> = kept.map(|(name, value, _)| (name, value)).collect();
            pairs.extend(k8s.map(|value| ("k8s".to_owned(), value)));
            pairs.extend(unknown);
            pairs.sort_by_key(|(name, _)| {
                seed.wrapping_mul(name.len() as u64 * 2 + 1) ^ seed.rotate_left(name.len() as u32)
            });
            let object = Value::Object(pairs.into_iter().collect());
            if pretty {
                serde_json::to_string_pretty(&object)
            } else {
                serde_json::to_string(&object)
            }
            .unwrap()
        },
    )
}

proptest! {
    #![proptest_config(crate::testing::cases(128))]

    /// Whole batches, so that layouts are learned from one document and tried on the next.
    #[test]
    fn rows_are_those_of_serde_json(documents in proptest::collection::vec(document(), 1..12), repeat in 1usize..4) {
        let mut decoder = decoder();
        let mut expected = Vec::new();
        for document in documents.iter().cycle().take(documents.len() * repeat) {
            let reference = reference(&serde_json::from_str(document).unwrap());
            let pushed = push(&mut decoder, document);
            prop_assert_eq!(pushed.is_ok(), reference.is_some(), "{} {:?}", document, pushed);
            expected.extend(reference);
        }
        let rows = decoder.finish();
        prop_assert_eq!(rows.batch.num_rows(), expected.len());
        for (index, expected) in expected.iter().enumerate() {
            prop_assert_eq!(&row(&rows, index), expected);
        }
    }

    /// A byte changed, removed or added: accepted only if it is JSON still.
    #[test]
    fn mutated_documents(document in document(), at: prop::sample::Index, byte: u8, kind in 0..4) {
        let mut bytes = document.into_bytes();
        let index = at.index(bytes.len());
        match kind {
            0 => bytes[index] = byte,
            1 => { bytes.remove(index); }
            2 => bytes.insert(index, byte),
            _ => bytes.truncate(index),
        }
        let mut decoder = decoder();
        let first = decoder.push(&bytes, &RecordMeta::new(0, 0));
        let parsed: Option<Value> = serde_json::from_slice(&bytes).ok();
        let reference = parsed.as_ref().and_then(reference);
        prop_assert_eq!(first.is_ok(), reference.is_some(), "{} {:?}", String::from_utf8_lossy(&bytes), first);
        let rows = decoder.finish();
        prop_assert_eq!(rows.batch.num_rows(), usize::from(reference.is_some()));
        if let Some(reference) = reference {
            prop_assert_eq!(row(&rows, 0), reference);
        }
    }

    #[test]
    fn numbers_are_those_of_serde_json(text in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?") {
        let mut scanner = super::Scanner::new(text.as_bytes());
        let number = scanner.number().unwrap();
        prop_assert!(scanner.rest().is_empty());
        let expected: Option<f64> = serde_json::from_str(&text).ok();
        prop_assert_eq!(number.to_f64().map(f64::to_bits), expected.map(f64::to_bits));
        if let Ok(expected) = serde_json::from_str::<i64>(&text) {
            prop_assert_eq!(number.to_i64(), Some(expected));
        }
        if let Ok(expected) = serde_json::from_str::<u64>(&text) {
            prop_assert_eq!(number.to_u64(), Some(expected));
        }
    }
}

#[test]
fn reasons_name_field_and_byte() {
    let mut decoder = decoder();
    let reason = |decoder: &mut Decoder, text: &str| push(decoder, text).unwrap_err();
    let mistyped = reason(&mut decoder, r#"{"service":"a","ms":"12"}"#);
    assert_eq!(mistyped, r#"field "ms": expected a number, found a string at byte 20"#);
    let nested = reason(&mut decoder, r#"{"k8s":{"pod":[1]}}"#);
    assert_eq!(nested, r#"field "pod": expected a string, found an array at byte 14"#);
    let object = reason(&mut decoder, r#"{"k8s":5}"#);
    assert_eq!(object, r#"field "k8s": expected an object, found a number at byte 7"#);
    let fraction = reason(&mut decoder, r#"{"n":1.5}"#);
    assert_eq!(fraction, r#"field "n": not an integer of 64 bits at byte 5"#);
    assert_eq!(
        reason(&mut decoder, r#"{"n":1"#),
        "expected , or }, found the end at byte 6"
    );
    assert_eq!(reason(&mut decoder, ""), "expected an object, found the end at byte 0");
    for (text, found) in [
        ("not json", "something that is not JSON"),
        ("nil", "something that is not JSON"),
        ("null", "null"),
        ("true", "a boolean"),
        ("fals", "something that is not JSON"),
    ] {
        let expected = format!("expected an object, found {found} at byte 0");
        assert_eq!(reason(&mut decoder, text), expected);
    }
    assert_eq!(
        reason(&mut decoder, "[1]"),
        "expected an object, found an array at byte 0"
    );
    assert_eq!(
        reason(&mut decoder, "{} {}"),
        "something follows the document at byte 3"
    );
    assert_eq!(decoder.rows(), 0);
}

#[test]
fn the_last_of_equal_keys_counts() {
    let mut decoder = decoder();
    for _ in 0..3 {
        push(&mut decoder, r#"{"ms":1,"k8s":{"pod":"a"},"ms":2,"k8s":{"node":"b"}}"#).unwrap();
        push(&mut decoder, r#"{"ms":1,"ms":null,"k8s":{"pod":"a"},"k8s":null}"#).unwrap();
    }
    let rows = decoder.finish();
    for index in (0..6).step_by(2) {
        assert_eq!(row(&rows, index), [("ms".to_owned(), json!(2.0))].into());
        assert_eq!(row(&rows, index + 1), [].into());
    }
}

#[test]
fn times() {
    let units = [
        TimeUnit::Second,
        TimeUnit::Millisecond,
        TimeUnit::Microsecond,
        TimeUnit::Nanosecond,
    ];
    let expected = [
        1_700_000_000,
        1_700_000_000_123,
        1_700_000_000_123_456,
        1_700_000_000_123_456_789i64,
    ];
    for (unit, expected) in units.into_iter().zip(expected) {
        let field = Field::new("ts", DataType::Timestamp(unit, None), true);
        let mut decoder = Decoder::new(Format::Json, Arc::new(Schema::new(vec![field])), &[]).unwrap();
        push(&mut decoder, r#"{"ts":"2023-11-14T22:13:20.123456789Z"}"#).unwrap();
        push(&mut decoder, &format!(r#"{{"ts":{expected}}}"#)).unwrap();
        push(&mut decoder, &format!(r#"{{"ts":{expected}.0}}"#)).unwrap();
        push(&mut decoder, r#"{"ts":-0.5}"#).unwrap();
        push(&mut decoder, r#"{"ts":1700000000.75}"#).unwrap();
        push(&mut decoder, r#"{"ts":"2023-11-14 22:13:20"}"#).unwrap();
        push(&mut decoder, &format!(r#"{{"ts":"{expected}"}}"#)).unwrap();
        assert!(push(&mut decoder, r#"{"ts":1e30}"#).is_err());
        assert!(push(&mut decoder, r#"{"ts":"yesterday"}"#).is_err());
        let rows = decoder.finish();
        let integers = arrow::compute::cast(rows.batch.column(0), &DataType::Int64).unwrap();
        let values = integers.as_primitive::<Int64Type>();
        assert_eq!(values.values()[..2], [expected; 2], "{unit:?}");
        let per_second = expected / 1_700_000_000;
        assert_eq!(
            values.values()[3..],
            [-1, 1_700_000_000, 1_700_000_000 * per_second, expected]
        );
    }
}

#[test]
fn not_null_rejects_what_is_missing() {
    let field = Field::new("service", dictionary(), false);
    let mut decoder = Decoder::new(Format::Json, Arc::new(Schema::new(vec![field])), &[]).unwrap();
    for text in [r#"{"service":null}"#, "{}"] {
        let reason = push(&mut decoder, text).unwrap_err();
        assert_eq!(
            reason,
            r#"field "service": it is missing or null, but declared NOT NULL"#
        );
    }
    push(&mut decoder, r#"{"service":"a"}"#).unwrap();
    assert_eq!(decoder.finish().batch.num_rows(), 1);
}

#[test]
fn paths_that_overlap_are_refused() {
    let columns = Schema::new(vec![
        Field::new("a", dictionary(), true),
        Field::new("b", dictionary(), true),
    ]);
    let path = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect());
    for paths in [
        [path(&["x"]), path(&["x", "y"])],
        [path(&["x", "y"]), path(&["x"])],
        [path(&["x"]), path(&["x"])],
    ] {
        assert!(Decoder::new(Format::Json, Arc::new(columns.clone()), &paths).is_err());
    }
}

#[test]
fn deep_documents_are_refused_without_recursing() {
    let deep = "[".repeat(100_000);
    let mut decoder = decoder();
    assert!(
        push(&mut decoder, &format!(r#"{{"x":{deep}"#))
            .unwrap_err()
            .contains("nested too deep")
    );
}

/// Layouts of several writers are kept at once, and every row is right whichever comes.
#[test]
fn writers_alternate() {
    let mut decoder = decoder();
    let forms = [
        r#"{"service":"S","ms":1.5,"n":1}"#,
        r#"{"n":1,"ms":1.5,"service":"S"}"#,
        r#"{ "ms" : 1.5, "service" : "S", "n" : 1 }"#,
        r#"{"x":[1,2],"service":"S","k8s":{"y":1},"ms":1.5,"n":1}"#,
        r#"{"service":"S","ms":1.5,"n":1,"esc\u0061ped":"\n"}"#,
    ];
    for index in 0..500usize {
        push(
            &mut decoder,
            &forms[index * 7 % forms.len()].replace('S', &format!("s{}", index % 10)),
        )
        .unwrap();
    }
    let rows = decoder.finish();
    for index in 0..500usize {
        let service = ("service".to_owned(), json!(format!("s{}", index % 10)));
        assert_eq!(
            row(&rows, index),
            [service, ("ms".to_owned(), json!(1.5)), ("n".to_owned(), json!(1))].into()
        );
    }
}

mod heartbeat {
    use super::*;
    use crate::schema;

    fn rows(texts: &[&str]) -> Vec<Result<usize, String>> {
        let mut decoder = Decoder::new(Format::Heartbeat, schema(Format::Heartbeat), &[]).unwrap();
        texts.iter().map(|text| push(&mut decoder, text)).collect()
    }

    #[test]
    fn event_time_is_the_logs_not_the_producers() {
        let mut decoder = Decoder::new(Format::Heartbeat, schema(Format::Heartbeat), &[]).unwrap();
        let record = RecordMeta {
            append_ms: 42,
            ..RecordMeta::new(1, 2)
        };
        let texts = [
            r#"{"service":"cart","instance":"cart-1","time":"2100-01-01T00:00:00Z"}"#,
            r#"{"time":1700000000123,"service":"cart"}"#,
        ];
        for text in texts {
            assert_eq!(decoder.push(text.as_bytes(), &record), Ok(1));
        }
        let rows = decoder.finish();
        let times = |column: usize| {
            rows.batch
                .column(column)
                .as_primitive::<TimestampMillisecondType>()
                .values()
                .to_vec()
        };
        assert_eq!(times(2), [4_102_444_800_000, 1_700_000_000_123]);
        assert_eq!(times(3), [42, 42]);
        assert!(rows.batch.column(1).is_null(1));
    }

    #[test]
    fn who_sent_it_must_be_said() {
        let results = rows(&[
            r#"{"instance":"a"}"#,
            r#"{"service":5}"#,
            r#"{"service":"a","time":"yesterday"}"#,
        ]);
        assert!(results.iter().all(Result::is_err), "{results:?}");
        let only_time = Schema::new(vec![Field::new("event_time", crate::timestamp_ms(), true)]);
        let mut decoder = Decoder::new(Format::Heartbeat, Arc::new(only_time), &[]).unwrap();
        assert!(push(&mut decoder, "{}").is_err());
        assert_eq!(push(&mut decoder, r#"{"service":"a"}"#), Ok(1));
    }
}
