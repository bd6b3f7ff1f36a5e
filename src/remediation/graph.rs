//! Who calls whom, and which sick service explains which.
//!
//! A caller of a sick service is slow and failing through no fault of its own. What is only a symptom is not acted on, and
//! does not count as another sick service when the fleet is judged as a whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::Target;

use crate::{Fleet, config::ms, state::StateKey};

/// Sick services beyond which nobody looks for roots: that is a storm by any count.
const ROOTS_MAX: usize = 200;
/// Callees remembered of one caller.
const CALLEES_MAX: usize = 256;
/// A call seen again sooner than this is no news.
const REFRESH_MS: i64 = 10 * 60_000;

impl Fleet {
    /// A caller was seen to call another service.
    pub(crate) fn on_call(&mut self, caller: &str, callee: &str) {
        let now_ms = self.now_ms();
        let forget_ms = now_ms.saturating_sub(ms(self.config.calls_forget));
        let known = self.state.calls.entry(caller.to_owned()).or_default();
        let before = known.len();
        known.retain(|_, seen_ms| *seen_ms > forget_ms);
        let mut changed = known.len() != before;
        let fresh = known.get(callee).is_some_and(|seen_ms| now_ms - seen_ms < REFRESH_MS);
        let room = known.len() < CALLEES_MAX || known.contains_key(callee);
        if callee != caller && !callee.is_empty() && !fresh && room {
            known.insert(callee.to_owned(), now_ms);
            changed = true;
        }
        if known.is_empty() {
            self.state.calls.remove(caller);
        }
        if changed {
            self.dirty.insert(StateKey::Calls(caller.to_owned()));
        }
    }

    /// Services that a service is known to call: configured, or seen lately.
    pub(crate) fn callees<'a>(&'a self, caller: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let forget_ms = self.now_ms().saturating_sub(ms(self.config.calls_forget));
        let configured = self.config.calls.get(caller).into_iter().flatten().map(String::as_str);
        let seen = self.state.calls.get(caller).into_iter().flatten();
        let seen = seen.filter(move |(_, seen_ms)| **seen_ms > forget_ms);
        configured.chain(seen.map(|(callee, _)| callee.as_str()))
    }

    /// The sick service furthest along the calls of `name` that explains its symptoms. Services that call each other in
    /// a circle explain nothing of each other.
    pub(crate) fn explained_by(&self, name: &str) -> Option<&str> {
        let reachable = self.reachable(name);
        let sick = reachable.iter().rev().copied().filter(|callee| self.is_sick(callee));
        sick.into_iter().find(|callee| !self.reachable(callee).contains(&name))
    }

    pub(crate) fn is_sick(&self, service: &str) -> bool {
        let key = Target::service(&self.config.tenant, service).key();
        self.index.sick_targets.contains_key(&key)
    }

    /// Everything that a service calls, directly or not, nearest first.
    fn reachable(&self, name: &str) -> Vec<&str> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut order = Vec::new();
        let mut next: VecDeque<&str> = self.callees(name).collect();
        while let Some(callee) = next.pop_front() {
            if seen.insert(callee) {
                order.push(callee);
                next.extend(self.callees(callee));
            }
        }
        order
    }

    /// How many of these sick services no other sick service explains.
    pub(crate) fn roots<'a>(&self, services: impl ExactSizeIterator<Item = (&'a str, bool)>) -> usize {
        let all = services.len();
        let no_calls = self.config.calls.is_empty() && self.state.calls.is_empty();
        if no_calls || all > ROOTS_MAX {
            return all;
        }
        // What is silent is so by itself, whatever it calls.
        services
            .filter(|(name, silent)| *silent || self.explained_by(name).is_none())
            .count()
    }
}

/// Callees of a caller and when each was last seen.
pub(crate) type Calls = BTreeMap<String, i64>;
