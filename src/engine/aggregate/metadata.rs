//! Commit metadata of a source partition: where each source stands on it, and where a replay has to begin.
//!
//! Text, one section per source: `v1[@version];fingerprint:watermark:low_water:low_watermark:idle[:set,first_pane]…;…`. The version is
//! that of the pipelines; fingerprints are 16 hexadecimal digits; `-` stands for none, `?` for a set that waits for its first row. Behind
//! the first pane of a set that is backfilled comes the offset up to which it is, `@offset`; when that is done, the watermark at that time.

use std::fmt::Write;

use crate::error::Error;

/// Kafka keeps at most so much by default.
pub const BYTES_MAX: usize = 4_096;
/// What it begins with, what a version of the pipelines adds at most, and what one source and one set take at most, with their separators.
const VERSION: &str = "v1";
const PIPELINES_BYTES_MAX: usize = 1 + 20;
const SOURCE_BYTES_MAX: usize = 1 + 16 + 1 + 20 + 1 + 20 + 1 + 20 + 1 + 1;
const SET_BYTES_MAX: usize = 1 + 16 + 1 + 17 + 1 + 20;

/// From which pane on a set takes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPane {
    /// Since the first row that was ever read.
    Any,
    At(i64),
    /// Decided by the first row to come: nothing is known of those before.
    Pending,
    /// Rows below the offset have been read again for it; those from there on up to where the partition stands are yet to be.
    Backfilling {
        first_pane_ms: i64,
        offset: i64,
    },
    /// The backfill met what is new when the partition's watermark, the greatest of all sources that its views were over, was this.
    Backfilled {
        first_pane_ms: i64,
        met_ms: i64,
    },
}

/// Where one source stands on a partition at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub source: u64,
    /// Greatest event time − delay; `None` before the first row.
    pub watermark_ms: Option<i64>,
    /// Least offset of a row not yet published.
    pub low_water: i64,
    /// The watermark before the record at low-water: replaying from there with it does again what was done.
    pub low_watermark_ms: Option<i64>,
    pub idle: bool,
    pub sets: Vec<(u64, FirstPane)>,
}

impl Standing {
    /// Whether some set has every row that was ever read.
    pub fn holds_all(&self) -> bool {
        self.sets.iter().any(|(_, first_pane)| *first_pane == FirstPane::Any)
    }
}

/// Whether so many sources and sets fit on one topic.
pub fn fits(sources: usize, sets: usize) -> bool {
    VERSION.len() + PIPELINES_BYTES_MAX + sources * SOURCE_BYTES_MAX + sets * SET_BYTES_MAX <= BYTES_MAX
}

/// `version` is that of the pipelines, 0 where they have none.
pub fn encode(version: u64, standings: &[Standing]) -> String {
    let mut text = String::from(VERSION);
    if version > 0 {
        let _ = write!(text, "@{version}");
    }
    let time = |time: Option<i64>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    for standing in standings {
        let _ = write!(
            text,
            ";{:016x}:{}:{}:{}:{}",
            standing.source,
            time(standing.watermark_ms),
            standing.low_water,
            time(standing.low_watermark_ms),
            u8::from(standing.idle)
        );
        for (set, first) in &standing.sets {
            let first = match first {
                FirstPane::Any => "-".to_owned(),
                FirstPane::At(ms) => ms.to_string(),
                FirstPane::Pending => "?".to_owned(),
                FirstPane::Backfilling { first_pane_ms, offset } => format!("{first_pane_ms},@{offset}"),
                FirstPane::Backfilled { first_pane_ms, met_ms } => format!("{first_pane_ms},{met_ms}"),
            };
            let _ = write!(text, ":{set:016x},{first}");
        }
    }
    text
}

/// Metadata of a reader that comes later than the first record: of rows before its offset nothing is known.
pub fn nothing_known() -> String {
    encode(0, &[])
}

/// The version of the pipelines, and where each source stands.
pub fn decode(text: &str) -> Result<(u64, Vec<Standing>), Error> {
    let mut sections = text.split(';');
    let version = sections
        .next()
        .and_then(|first| first.strip_prefix(VERSION))
        .and_then(|rest| match rest.strip_prefix('@') {
            Some(version) => version.parse().ok(),
            None => rest.is_empty().then_some(0),
        })
        .ok_or_else(|| unreadable(text))?;
    let standings = sections.map(|section| standing(section).ok_or_else(|| unreadable(text)));
    Ok((version, standings.collect::<Result<_, _>>()?))
}

fn unreadable(text: &str) -> Error {
    Error::Unreadable {
        what: "commit metadata",
        reason: format!("{text:?} is not of version {VERSION}"),
    }
}

fn standing(section: &str) -> Option<Standing> {
    let mut fields = section.split(':');
    let time = |text: &str| match text {
        "-" => Some(None),
        ms => instant(ms).map(Some),
    };
    Some(Standing {
        source: u64::from_str_radix(fields.next()?, 16).ok()?,
        watermark_ms: time(fields.next()?)?,
        low_water: fields.next()?.parse().ok()?,
        low_watermark_ms: time(fields.next()?)?,
        idle: match fields.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        },
        sets: fields.map(set).collect::<Option<_>>()?,
    })
}

fn set(text: &str) -> Option<(u64, FirstPane)> {
    let (set, first) = text.split_once(',')?;
    let first = match first {
        "-" => FirstPane::Any,
        "?" => FirstPane::Pending,
        first => match first.split_once(',') {
            None => FirstPane::At(instant(first)?),
            Some((first, then)) => {
                let first_pane_ms = instant(first)?;
                match then.strip_prefix('@') {
                    Some(offset) => FirstPane::Backfilling {
                        first_pane_ms,
                        offset: offset.parse().ok()?,
                    },
                    None => FirstPane::Backfilled {
                        first_pane_ms,
                        met_ms: instant(then)?,
                    },
                }
            }
        },
    };
    Some((u64::from_str_radix(set, 16).ok()?, first))
}

/// A time far from where arithmetic overflows.
fn instant(text: &str) -> Option<i64> {
    let ms: i64 = text.parse().ok()?;
    (ms.unsigned_abs() < 1 << 53).then_some(ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first_pane() -> impl Strategy<Value = FirstPane> {
        let time = || -1_i64 << 52..1 << 52;
        let offsets = 0..i64::MAX;
        prop_oneof![
            Just(FirstPane::Any),
            Just(FirstPane::Pending),
            time().prop_map(FirstPane::At),
            (time(), offsets).prop_map(|(first_pane_ms, offset)| FirstPane::Backfilling { first_pane_ms, offset }),
            (time(), time()).prop_map(|(first_pane_ms, met_ms)| FirstPane::Backfilled { first_pane_ms, met_ms }),
        ]
    }

    fn any_standing() -> impl Strategy<Value = Standing> {
        let time = || proptest::option::of(-1_i64 << 52..1 << 52);
        let times = (time(), time());
        let sets = proptest::collection::vec((any::<u64>(), first_pane()), 0..4);
        (any::<u64>(), times, any::<i64>(), any::<bool>(), sets).prop_map(|(source, times, low_water, idle, sets)| {
            Standing {
                source,
                watermark_ms: times.0,
                low_water,
                low_watermark_ms: times.1,
                idle,
                sets,
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(version: u64, standings in proptest::collection::vec(any_standing(), 0..4)) {
            let text = encode(version, &standings);
            let sets = standings.iter().map(|standing| standing.sets.len()).sum();
            prop_assert!(!fits(standings.len(), sets) || text.len() <= BYTES_MAX);
            prop_assert_eq!(decode(&text).unwrap(), (version, standings));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(v1)?[@;:,?0-9a-f-]{0,90}") {
            let _ = decode(&text);
        }
    }
}
