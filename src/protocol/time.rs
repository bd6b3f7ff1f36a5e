//! Time on the wire: RFC 3339 in UTC outside, milliseconds since the Unix epoch inside.

use serde::{Deserialize, Deserializer, Serializer};

/// Milliseconds since the Unix epoch as RFC 3339, UTC, always with three decimals: `2026-01-02T03:04:05.678Z`.
pub fn to_rfc3339(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(time) => format!("{time:.3}"),
        Err(_) if ms < 0 => "0000-01-01T00:00:00.000Z".to_owned(),
        Err(_) => "9999-12-31T23:59:59.999Z".to_owned(),
    }
}

/// Reads any RFC 3339 time; `None` when it is none.
pub fn from_rfc3339(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_millisecond())
}

/// For `#[serde(with = "protocol::time::optional")]` on an `Option<i64>` of milliseconds; `None` is left out or null.
pub mod optional {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Time(#[serde(with = "super")] i64);

    pub fn serialize<S: Serializer>(ms: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
        ms.map(Time).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
        Ok(Option::<Time>::deserialize(deserializer)?.map(|time| time.0))
    }
}

/// For `#[serde(with = "protocol::time")]` on an `i64` of milliseconds.
pub fn serialize<S: Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&to_rfc3339(*ms))
}

/// For `#[serde(with = "protocol::time")]` on an `i64` of milliseconds.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    from_rfc3339(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not an RFC 3339 time")))
}
