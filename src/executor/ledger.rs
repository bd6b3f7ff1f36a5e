//! The executor's memory: which actions were claimed, begun and finished, so that each has at most one effect.
//!
//! A single file, written durably at every step. Opening it takes an exclusive lock that ends with the process: the
//! lock is the lease, so an entry found unfinished is always one of a dead predecessor, never of a live neighbour.
//! Knows nothing of Kafka, of adapters or of why an action is allowed.

use std::path::{Path, PathBuf};

use protocol::message::{Outcome, OutcomeStatus};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Error,
    adapter::Before,
    admission::Refusal,
    budget::{Bounds, Breaker, Ending, Start, WINDOW_MS_MAX},
};

/// Action id → JSON of [`Entry`].
const ACTIONS: TableDefinition<u128, &[u8]> = TableDefinition::new("actions");
/// (time of the last change, action id): what [`Ledger::prune`] walks.
const BY_TIME: TableDefinition<(i64, u128), ()> = TableDefinition::new("actions_by_time");
/// Target key → (highest sequence seen, when).
const SEQUENCES: TableDefinition<&str, (u64, i64)> = TableDefinition::new("sequences");
/// (when, action id) → (action's type, service): what was started, for the budget.
const STARTS: TableDefinition<(i64, u128), (&str, &str)> = TableDefinition::new("starts");
/// Lane → JSON of [`Breaker`].
const BREAKERS: TableDefinition<&str, &[u8]> = TableDefinition::new("breakers");

/// What is known of one action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub payload_sha256: String,
    pub target_key: String,
    pub sequence: u64,
    /// The run of the executor that wrote this last, for people.
    pub owner: Uuid,
    pub changed_at_ms: i64,
    pub state: State,
}

/// How far an action has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Taken on; nothing was done in the world.
    Claimed,
    /// The effect may have begun in a world that was like this.
    Intent {
        #[serde(default)]
        before: Before,
        /// Whose breaker hears of the end.
        #[serde(default)]
        lane: String,
    },
    /// Finished with this report.
    Done { outcome: Box<Outcome> },
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    Granted,
    /// A command with a higher fencing token was seen for this target.
    Fenced {
        highest: u64,
    },
}

/// An action that is about to start.
pub struct Starting<'a> {
    pub action: Uuid,
    pub kind: &'a str,
    pub service: &'a str,
    /// The kind of action and the adapter: what shares a breaker.
    pub lane: &'a str,
    pub before: Before,
}

/// The ledger file of one executor.
pub struct Ledger {
    database: Database,
    path: PathBuf,
    owner: Uuid,
}

impl Ledger {
    /// Opens or creates the file and its directory. `owner` names this run.
    pub fn open(path: &Path, owner: Uuid) -> Result<Self, Error> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|source| Error::Directory {
                path: directory.to_owned(),
                source,
            })?;
        }
        let database = Database::create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Error::LedgerInUse { path: path.to_owned() },
            other => Error::Ledger {
                path: path.to_owned(),
                doing: "opened",
                source: Box::new(other.into()),
            },
        })?;
        let ledger = Self {
            database,
            path: path.to_owned(),
            owner,
        };
        ledger.write(|transaction| {
            transaction.open_table(ACTIONS)?;
            transaction.open_table(BY_TIME)?;
            transaction.open_table(SEQUENCES)?;
            transaction.open_table(STARTS)?;
            transaction.open_table(BREAKERS)?;
            Ok(())
        })?;
        Ok(ledger)
    }

    pub fn find(&self, action: Uuid) -> Result<Option<Entry>, Error> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(ACTIONS)?;
            Ok(table.get(action.as_u128())?.map(|bytes| bytes.value().to_vec()))
        };
        read()
            .map_err(|source| self.failed("read", source))?
            .map(|bytes| serde_json::from_slice(&bytes).map_err(|source| Error::LedgerEntry { action, source }))
            .transpose()
    }

    /// The highest sequence seen for a target.
    pub fn highest(&self, target_key: &str) -> Result<Option<u64>, Error> {
        let read = || -> Result<Option<u64>, redb::Error> {
            let table = self.database.begin_read()?.open_table(SEQUENCES)?;
            Ok(table.get(target_key)?.map(|seen| seen.value().0))
        };
        read().map_err(|source| self.failed("read", source))
    }

    /// Takes an action on, unless a later command was seen for its target.
    pub fn claim(&self, action: Uuid, mut entry: Entry) -> Result<Claim, Error> {
        entry.state = State::Claimed;
        self.write(|transaction| {
            if let Some(highest) = see(transaction, &entry)? {
                return Ok(Claim::Fenced { highest });
            }
            put(transaction, action, &entry)?;
            Ok(Claim::Granted)
        })
    }

    /// Says, before anything is done, that it may have been done, if the executor's own bounds have room. Counted in the
    /// same transaction: however many start at a time, none is over the budget.
    pub fn start(
        &self,
        starting: Starting<'_>,
        mut entry: Entry,
        bounds: &Bounds,
    ) -> Result<Result<(), Refusal>, Error> {
        let (action, now_ms) = (starting.action, entry.changed_at_ms);
        entry.state = State::Intent {
            before: starting.before,
            lane: starting.lane.to_owned(),
        };
        self.write(|transaction| {
            let mut starts = transaction.open_table(STARTS)?;
            let since = now_ms.saturating_sub(bounds.window_ms());
            let until = now_ms.saturating_add(bounds.window_ms());
            let (mut started, mut own) = (Vec::new(), None);
            for row in starts.range((since, 0)..=(until, u128::MAX))? {
                let (key, value) = row?;
                let (at_ms, id) = key.value();
                // Begun before a restart and begun again, it is one action still: the later time counts.
                if id == action.as_u128() {
                    own = Some(at_ms);
                    continue;
                }
                let (kind, service) = value.value();
                started.push(Start {
                    at_ms,
                    action: kind.to_owned(),
                    service: service.to_owned(),
                });
            }
            let mut breaker = breaker(transaction, starting.lane)?;
            let admitted = bounds
                .room(&started, starting.kind, starting.service, now_ms)
                .and_then(|()| breaker.admit(bounds.breaker, starting.lane, action, now_ms));
            if admitted.is_ok() {
                if let Some(at_ms) = own {
                    starts.remove((at_ms, action.as_u128()))?;
                }
                starts.insert((now_ms, action.as_u128()), (starting.kind, starting.service))?;
                keep_breaker(transaction, starting.lane, &breaker)?;
                put(transaction, action, &entry)?;
            }
            Ok(admitted)
        })
    }

    /// Keeps the final report: whoever asks again gets this one. Of an action that was started its breaker hears as well.
    pub fn finish(&self, action: Uuid, mut entry: Entry, outcome: &Outcome) -> Result<(), Error> {
        entry.state = State::Done {
            outcome: Box::new(outcome.clone()),
        };
        self.write(|transaction| {
            see(transaction, &entry)?;
            let before = put(transaction, action, &entry)?;
            if let Some(State::Intent { lane, .. }) = before.map(|before| before.state) {
                let mut breaker = breaker(transaction, &lane)?;
                breaker.ended(action, ending(outcome), entry.changed_at_ms);
                keep_breaker(transaction, &lane, &breaker)?;
            }
            Ok(())
        })
    }

    /// Forgets what was last touched before `before_ms`. Unfinished actions stay. Returns how many went.
    pub fn prune(&self, before_ms: i64) -> Result<usize, Error> {
        self.write(|transaction| {
            let mut actions = transaction.open_table(ACTIONS)?;
            let mut by_time = transaction.open_table(BY_TIME)?;
            let old: Vec<(i64, u128)> = by_time
                .range(..(before_ms, 0))?
                .map(|row| row.map(|(key, _)| key.value()))
                .collect::<Result<_, _>>()?;
            let mut pruned = 0;
            for (at, action) in old {
                let done = actions.get(action)?.is_none_or(|bytes| {
                    serde_json::from_slice::<Entry>(bytes.value())
                        .is_ok_and(|entry| matches!(entry.state, State::Done { .. }))
                });
                if done {
                    actions.remove(action)?;
                    by_time.remove((at, action))?;
                    pruned += 1;
                }
            }
            let mut sequences = transaction.open_table(SEQUENCES)?;
            sequences.retain(|_, (_, seen_ms)| seen_ms >= before_ms)?;
            // However short the retention, the budget's windows are looked back on.
            let old = before_ms.saturating_sub(WINDOW_MS_MAX);
            transaction.open_table(STARTS)?.retain(|(at_ms, _), _| at_ms >= old)?;
            Ok(pruned)
        })
    }

    /// The start of an entry for [`Ledger::claim`] and what follows.
    pub fn entry(&self, payload_sha256: &str, target_key: &str, sequence: u64, now_ms: i64) -> Entry {
        Entry {
            payload_sha256: payload_sha256.to_owned(),
            target_key: target_key.to_owned(),
            sequence,
            owner: self.owner,
            changed_at_ms: now_ms,
            state: State::Claimed,
        }
    }

    fn write<T>(&self, change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, Error> {
        let run = || -> Result<T, redb::Error> {
            let transaction = self.database.begin_write()?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|source| self.failed("written", source))
    }

    fn failed(&self, doing: &'static str, source: redb::Error) -> Error {
        Error::Ledger {
            path: self.path.clone(),
            doing,
            source: Box::new(source),
        }
    }
}

/// Raises the highest sequence of the target; answers with it when the entry's is below.
fn see(transaction: &WriteTransaction, entry: &Entry) -> Result<Option<u64>, redb::Error> {
    let mut sequences = transaction.open_table(SEQUENCES)?;
    let highest = sequences.get(&*entry.target_key)?.map(|seen| seen.value().0);
    if let Some(highest) = highest.filter(|highest| *highest > entry.sequence) {
        return Ok(Some(highest));
    }
    sequences.insert(&*entry.target_key, (entry.sequence, entry.changed_at_ms))?;
    Ok(None)
}

/// Writes the entry and returns the one before it.
fn put(transaction: &WriteTransaction, action: Uuid, entry: &Entry) -> Result<Option<Entry>, redb::Error> {
    let mut actions = transaction.open_table(ACTIONS)?;
    let mut by_time = transaction.open_table(BY_TIME)?;
    let bytes = serde_json::to_vec(entry).expect("entries have string keys and finite numbers");
    let before = actions
        .insert(action.as_u128(), &*bytes)?
        .and_then(|old| serde_json::from_slice::<Entry>(old.value()).ok());
    if let Some(before) = &before {
        by_time.remove((before.changed_at_ms, action.as_u128()))?;
    }
    by_time.insert((entry.changed_at_ms, action.as_u128()), ())?;
    Ok(before)
}

/// What this executor does not know, or cannot read, is a breaker that has never opened.
fn breaker(transaction: &WriteTransaction, lane: &str) -> Result<Breaker, redb::Error> {
    let breakers = transaction.open_table(BREAKERS)?;
    let kept = breakers.get(lane)?;
    Ok(kept
        .and_then(|bytes| serde_json::from_slice(bytes.value()).ok())
        .unwrap_or_default())
}

fn keep_breaker(transaction: &WriteTransaction, lane: &str, breaker: &Breaker) -> Result<(), redb::Error> {
    let bytes = serde_json::to_vec(breaker).expect("a breaker is numbers and an id");
    transaction.open_table(BREAKERS)?.insert(lane, &*bytes)?;
    Ok(())
}

/// 404 and 409 speak of the target, not of who acts on it.
fn ending(outcome: &Outcome) -> Ending {
    match (outcome.status, outcome.code) {
        (OutcomeStatus::Succeeded, _) => Ending::Worked,
        (OutcomeStatus::Failed, 404 | 409) => Ending::SaysNothing,
        (OutcomeStatus::Failed | OutcomeStatus::Unknown, _) => Ending::Failed,
        _ => Ending::SaysNothing,
    }
}

#[cfg(test)]
mod tests;
