//! One `panes` partition: its windows, its entities, and from where a replay would have to begin.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use detector::State;
use engine::assemble::{Assembler, ProgressTable, Standing};
use protocol::log::Note;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Options, entities::Entities, live::Live};

/// Whether an entity is alarming, for the detector and for each policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Alarm {
    pub(super) alarming: bool,
    /// By policy: windows in a row that met CLEAR WHEN.
    pub(super) active: BTreeMap<String, u32>,
    /// Silence: windows of one timeout each that were already said.
    #[serde(default)]
    pub(super) silent_windows: u64,
}

/// What one detector knows of one entity.
pub(super) struct Entity {
    pub(super) state: Box<dyn State>,
    pub(super) meta: Meta,
    /// Version of the pipelines whose detector it is the state of.
    pub(super) version: u64,
    /// A state of a version that the replay has yet to come to.
    pub(super) ahead: Option<Vec<u8>>,
    /// Offset of `panes` whose effects the written state includes.
    pub(super) includes: i64,
    /// The last offset at which the written state still was the state.
    pub(super) unwritten_since: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) target: BTreeMap<String, Value>,
    pub(super) alarm: Alarm,
    /// Event time of the last row.
    pub(super) last_ms: i64,
    /// Silence: the last event time by source partition.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) seen: BTreeMap<i32, i64>,
    #[serde(default)]
    pub(super) source: u64,
}

/// A written entity: this in JSON, a newline, the detector's snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct EntityRecord {
    pub(super) includes: i64,
    #[serde(default)]
    pub(super) version: u64,
    pub(super) meta: Meta,
}

/// The progress table as it stood at low-water, with the open incidents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ProgressRecord {
    pub(super) low_water: i64,
    pub(super) table: ProgressTable,
    pub(super) open: BTreeMap<String, uuid::Uuid>,
    pub(super) clock_ms: i64,
    /// Versions of the pipelines that had windows open, oldest first, and where their views stood. None where pipelines are not
    /// versioned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) versions: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) standings: Vec<Standing>,
}

pub(super) struct Snapshot {
    pub(super) offset: i64,
    pub(super) needed_since: i64,
    pub(super) record: ProgressRecord,
}

/// One `panes` partition.
pub(super) struct Part {
    pub(super) assembler: Assembler,
    pub(super) live: Arc<Live>,
    /// For each slot, the watch whose state its entities have.
    pub(super) owners: Vec<usize>,
    /// By slot.
    pub(super) entities: Vec<Entities>,
    pub(super) open: BTreeMap<String, uuid::Uuid>,
    /// Outputs of records below this were published by an earlier life.
    pub(super) committed: i64,
    /// Windows closed at or before this offset are scored in every state there is.
    pub(super) score_from: i64,
    pub(super) low_water: i64,
    pub(super) written_low_water: Option<i64>,
    pub(super) next_offset: i64,
    pub(super) clock_ms: i64,
    pub(super) forwarded_ms: i64,
    pub(super) forwarded_watermark_ms: Option<i64>,
    pub(super) flushed_slot: Option<i64>,
    pub(super) snapshots: VecDeque<Snapshot>,
    pub(super) restored: Option<ProgressRecord>,
    /// State as it was read: by detector, then by the entity's key. What is of no detector yet may be of a later version's.
    pub(super) stored: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Versions whose texts are in the state topic.
    pub(super) stored_versions: BTreeMap<u64, protocol::log::Version>,
}

impl Entity {
    pub(super) fn dirty(&mut self, offset: i64) {
        self.unwritten_since.get_or_insert(offset - 1);
    }
}

impl Part {
    pub(super) fn new(assembler: Assembler, live: Arc<Live>) -> Self {
        Self {
            owners: live.owners(&assembler),
            assembler,
            entities: live.slots.iter().map(|_| Entities::default()).collect(),
            live,
            open: BTreeMap::new(),
            committed: 0,
            score_from: -1,
            low_water: 0,
            written_low_water: None,
            next_offset: 0,
            clock_ms: 0,
            forwarded_ms: 0,
            forwarded_watermark_ms: None,
            flushed_slot: None,
            snapshots: VecDeque::new(),
            restored: None,
            stored: BTreeMap::new(),
            stored_versions: BTreeMap::new(),
        }
    }

    pub(super) fn note(&mut self, note: Note) {
        match note {
            Note::IncidentOpened { target, incident } => {
                self.open.insert(tenantless(&target), incident);
            }
            Note::IncidentClosed { target, .. } => {
                self.open.remove(&tenantless(&target));
            }
            Note::PartitionRetired { .. } => {}
        }
    }

    /// Remembers where a replay could start, about once a second of the log's clock.
    pub(super) fn remember(&mut self) {
        let due = self
            .snapshots
            .back()
            .is_none_or(|last| self.clock_ms >= last.record.clock_ms + 1_000);
        let offset = self.next_offset - 1;
        if !due || self.snapshots.back().is_some_and(|last| last.offset >= offset) {
            return;
        }
        let record = self.progress_record(self.next_offset);
        let needed_since = self.assembler.needed_since().unwrap_or(self.next_offset);
        self.snapshots.push_back(Snapshot {
            offset,
            needed_since,
            record,
        });
    }

    /// Everything that a replay from here would need to know.
    fn progress_record(&self, low_water: i64) -> ProgressRecord {
        let versions = self.live.numbers();
        let standings = if versions.is_empty() {
            Vec::new()
        } else {
            self.assembler.standings()
        };
        ProgressRecord {
            low_water,
            table: self.assembler.table().clone(),
            open: self.open.clone(),
            clock_ms: self.clock_ms,
            versions,
            standings,
        }
    }

    /// The texts of versions that a replay may need, and tombstones of those that none needs.
    pub(super) fn flush_versions(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let running = self.live.numbers();
        let needed = self.snapshots.iter().flat_map(|snapshot| &snapshot.record.versions);
        let needed: BTreeSet<u64> = needed.copied().chain(running).collect();
        let mut written = Vec::new();
        let key = |number: u64| format!("version/{number}").into_bytes();
        for version in self.live.versions.iter().filter(|version| version.number > 0) {
            self.stored_versions.entry(version.number).or_insert_with(|| {
                let text = protocol::log::Version {
                    version: version.number,
                    pipelines: version.texts.to_vec(),
                };
                let value = serde_json::to_vec(&text).expect("texts have string keys");
                written.push((key(version.number), Some(value)));
                text
            });
        }
        self.stored_versions.retain(|number, _| {
            let kept = needed.contains(number);
            if !kept {
                written.push((key(*number), None));
            }
            kept
        });
        written
    }

    /// Moves low-water as far as the oldest unwritten state allows.
    pub(super) fn advance_low_water(&mut self) {
        let unwritten = self
            .entities
            .iter()
            .flat_map(Entities::iter)
            .filter_map(|entity| entity.unwritten_since)
            .min();
        let oldest = unwritten.unwrap_or(self.next_offset - 1);
        let usable = |snapshot: &&Snapshot| snapshot.offset <= oldest && snapshot.offset >= self.score_from;
        let Some(scored) = self.snapshots.iter().rev().find(usable) else {
            return;
        };
        let needed = scored.needed_since.min(scored.offset + 1);
        let Some(start) = self.snapshots.iter().rposition(|snapshot| snapshot.offset < needed) else {
            return;
        };
        let low_water = self.snapshots[start].offset + 1;
        if low_water <= self.low_water {
            return;
        }
        self.score_from = scored.offset;
        self.low_water = low_water;
        self.snapshots.drain(..start);
    }

    /// State keys and values of the entities whose turn it is, and forgets those long gone.
    pub(super) fn flush(&mut self, options: &Options) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let slots = (options.state_interval_ms / 1_000).max(1);
        let now = self.clock_ms / 1_000;
        let from = self.flushed_slot.map_or(now, |last| last + 1).max(now - slots + 1);
        if from > now {
            return Vec::new();
        }
        self.flushed_slot = Some(now);
        let turn: BTreeSet<i64> = (from..=now).map(|slot| slot.rem_euclid(slots)).collect();
        let includes = self.next_offset - 1;
        // In event time: who reads a backlog has seen nobody lately by the clock.
        let watermark_ms = self.assembler.table().watermark_ms();
        let mut written = Vec::new();
        for (id, entities) in self.live.slots.iter().zip(&mut self.entities) {
            entities.retain(|key, entity| {
                let name = format!("detector/{id}/{key}");
                let forgotten = |now_ms: i64| {
                    entity.meta.last_ms != i64::MIN && entity.meta.last_ms + options.entity_ttl_ms < now_ms
                };
                if watermark_ms.is_some_and(forgotten) {
                    written.push((name.into_bytes(), None));
                    return false;
                }
                let slot = (seed(id, key) % slots as u64) as i64;
                if entity.unwritten_since.is_some() && turn.contains(&slot) {
                    entity.unwritten_since = None;
                    entity.includes = includes;
                    written.push((name.into_bytes(), Some(entity.encode())));
                }
                true
            });
        }
        written
    }
}

impl Entity {
    pub(super) fn encode(&self) -> Vec<u8> {
        let record = EntityRecord {
            includes: self.includes,
            version: self.version,
            meta: self.meta.clone(),
        };
        let mut bytes = serde_json::to_vec(&record).expect("state has string keys and finite numbers");
        bytes.push(b'\n');
        self.state.snapshot(&mut bytes);
        bytes
    }
}

pub(super) fn tenantless(target: &str) -> String {
    target
        .find('|')
        .map_or_else(|| target.to_owned(), |at| target[at..].to_owned())
}

/// FNV-1a: fixed for ever, since it seeds detectors and staggers writes.
pub(super) fn seed(watch: &str, key: &str) -> u64 {
    let bytes = watch.bytes().chain([0]).chain(key.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Part {
    /// The first point a replay can start from: where this life began.
    pub(super) fn begin(&mut self) {
        let record = self.progress_record(self.low_water);
        self.snapshots.push_back(Snapshot {
            offset: self.low_water - 1,
            needed_since: self.low_water,
            record,
        });
    }
}
