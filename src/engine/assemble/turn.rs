//! One version of a view after another: which closes which windows.
//!
//! A version that comes into the log finds views whose panes are not there yet. Until they are, the version before goes on; then both
//! meet at one end: windows that end by then are the older version's, those that end later the newer one's, and the newer one
//! says nothing before the older one has said all. So every end has its window, once. Sessions, which have no common ends, meet
//! at a time instead: they are of the version in whose turn they begin. A view whose panes and windows are the same changes at
//! once. All of it follows from the log and is part of what detect writes at low-water ([`Standing`]).

use serde::{Deserialize, Serialize};

use super::{Assembled, Assembler, ProgressTable, Ring, SourceTable, View, feeds, ring_sets};
use crate::{
    Error,
    spec::{DetectorInput, Pipeline, ViewSpec, WindowSpec},
};

/// How many ends of a new version are looked at for one that is an end of the old one, too.
const MEETING_ENDS_MAX: i64 = 10_000;

/// Which windows a version of a view closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The version before has windows to close.
    #[serde(default)]
    waiting: bool,
    /// It took over, and no window of its own was looked for since.
    #[serde(default)]
    pub(super) fresh: bool,
    /// Windows that end later; `None` for all, or while nobody can say.
    #[serde(default)]
    from_ms: Option<i64>,
    /// Windows that end no later, where the next version waits.
    #[serde(default)]
    until_ms: Option<i64>,
    /// Panes before this may be missing here.
    #[serde(default)]
    pub(super) since_ms: Option<i64>,
}

impl Turn {
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether a window with this end comes before the next version's.
    pub(super) fn takes(&self, end_ms: i64) -> bool {
        self.until_ms.is_none_or(|until| end_ms <= until)
    }

    /// Whether a window with this end comes after the last version's.
    pub(super) fn is_after(&self, end_ms: i64) -> bool {
        self.from_ms.is_none_or(|from| end_ms > from)
    }

    /// After which end windows are to be looked for, where those up to `end_ms` are closed.
    pub(super) fn not_before(&self, end_ms: i64) -> i64 {
        self.from_ms.map_or(end_ms, |from| from.max(end_ms))
    }

    /// After which end the first windows are to be looked for, where the watermark does not tell.
    pub(super) fn resume(&self) -> Option<i64> {
        self.from_ms.filter(|_| self.fresh)
    }
}

/// Where a version of a view stands, as it is written at low-water.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub version: u64,
    /// `pipeline.view`
    pub view: String,
    pub turn: Turn,
}

impl View {
    /// For a version that has closed nothing yet, whether a window of its own holds this pane.
    pub(super) fn waits_for(&self, pane_start_ms: i64) -> Option<bool> {
        let window = &self.spec.window;
        let turn = &self.turn;
        (turn.waiting || turn.fresh).then(|| {
            let over = |from: i64| match window.session_gap_ms {
                Some(gap) => pane_start_ms + gap <= from,
                None => window.last_end(pane_start_ms) <= from,
            };
            !turn.from_ms.is_some_and(over)
        })
    }

    /// Whether every window of its turn is closed.
    fn is_over(&self, closed_ms: Option<i64>) -> bool {
        let window = &self.spec.window;
        let (Some(until), Some(closed)) = (self.turn.until_ms, closed_ms) else {
            return false;
        };
        let after = window.lateness_ms + window.session_gap_ms.unwrap_or_default();
        let open = window.session_gap_ms.is_some() && self.sessions.are_open_before(until);
        until.saturating_add(after) <= closed && !open
    }
}

/// Where a view is.
#[derive(Clone, Copy)]
struct Place {
    ring: usize,
    view: usize,
}

impl Assembler {
    /// Takes in a version of the pipelines: its views begin now where they can, and wait where they cannot. Those that are declared no
    /// more end at once. A version that still waited is forgotten.
    pub fn follow(&mut self, version: u64, pipelines: &[Pipeline]) -> Result<(), Error> {
        let tables = self
            .table
            .sources
            .values()
            .flat_map(|source| source.partitions.values());
        let known: Vec<u64> = tables.flat_map(|table| &table.sets).map(|active| active.set).collect();
        let mut waited = Vec::new();
        for (index, ring) in self.rings.iter_mut().enumerate() {
            let waiting = ring.views.extract_if(.., |view| view.turn.waiting);
            waited.extend(waiting.map(|view| (index, view.spec.window, view.turn.since_ms)));
            ring.views.iter_mut().for_each(|view| view.turn.until_ms = None);
            ring.watched = None;
        }
        let mut declared = Vec::new();
        for (index, pipeline) in pipelines.iter().enumerate() {
            for sets in ring_sets(pipeline) {
                let ring = self.ring(&sets, pipeline)?;
                self.watch(ring, version, index, &sets, pipeline);
                let views = pipeline.views.iter().enumerate();
                for (at, spec) in views.filter(|(_, view)| view.pane_sets == sets) {
                    // The ring has kept what a version needs that waited for the same windows.
                    let same = |(of, window, _): &&(usize, WindowSpec, Option<i64>)| {
                        *of == ring && window.view == spec.window.view && window.cuts_as(&spec.window)
                    };
                    let since_ms = match waited.iter().find(same) {
                        Some((_, _, since_ms)) => *since_ms,
                        None => self.since_ms(ring, &known),
                    };
                    self.begin(ring, version, (index, at), spec, since_ms);
                    declared.push(spec.window.view.clone());
                }
            }
        }
        for ring in &mut self.rings {
            ring.views.retain(|view| declared.contains(&view.spec.window.view));
        }
        self.tidy();
        Ok(())
    }

    /// The ring of these sets, made if it is not there.
    fn ring(&mut self, sets: &[usize], pipeline: &Pipeline) -> Result<usize, Error> {
        let feeds = feeds(sets, pipeline);
        let same = |ring: &Ring| ring.pipeline == pipeline.name && ring.feeds == feeds;
        if let Some(found) = self.rings.iter().position(same) {
            return Ok(found);
        }
        self.rings.push(Ring::new(sets, pipeline)?);
        Ok(self.rings.len() - 1)
    }

    fn watch(&mut self, ring: usize, version: u64, index: usize, sets: &[usize], pipeline: &Pipeline) {
        let watched = |input: DetectorInput| sets.first().is_some_and(|set| input == DetectorInput::PaneSet(*set));
        if pipeline.detectors.iter().any(|detector| watched(detector.input)) {
            self.rings[ring].watched = sets.first().map(|set| (version, index, *set));
        }
    }

    /// From which pane on a ring has all there is, where panes of its sets came before: it may have let them go, or have been made
    /// after they came.
    fn since_ms(&self, ring: usize, known: &[u64]) -> Option<i64> {
        let ring = &self.rings[ring];
        if ring.feeds.iter().all(|feed| !known.contains(&feed.set)) {
            return None;
        }
        let tables = ring
            .feeds
            .iter()
            .filter_map(|feed| self.table.sources.get(&feed.source));
        let partitions = tables.flat_map(|table| table.partitions.values());
        let latest_ms = partitions.filter_map(|partition| partition.latest_pane_ms).max()?;
        let width_ms = ring.spec.width_ms;
        Some(latest_ms - latest_ms.rem_euclid(width_ms) + width_ms)
    }

    /// Puts a view into its ring: in place of the version before, behind it, or where there was none.
    fn begin(&mut self, ring: usize, version: u64, place: (usize, usize), spec: &ViewSpec, since_ms: Option<i64>) {
        let mut view = View {
            version,
            pipeline: place.0,
            index: place.1,
            turn: Turn::default(),
            spec: spec.clone(),
            missing: Default::default(),
            shown: Default::default(),
            sessions: Default::default(),
        };
        let Some(before) = self.find(&spec.window.view, |view| view.version < version) else {
            view.turn.since_ms = since_ms;
            self.rings[ring].views.push(view);
            return;
        };
        let old = &mut self.rings[before.ring].views[before.view];
        if before.ring == ring && old.spec.window.cuts_as(&spec.window) {
            view.turn = old.turn;
            view.missing = std::mem::take(&mut old.missing);
            view.sessions = std::mem::take(&mut old.sessions);
            *old = view;
            return;
        }
        view.turn.waiting = true;
        view.turn.since_ms = since_ms;
        self.rings[ring].views.push(view);
    }

    fn find(&self, name: &str, matches: impl Fn(&View) -> bool) -> Option<Place> {
        self.places().find(|place| {
            let view = &self.rings[place.ring].views[place.view];
            view.spec.window.view == name && matches(view)
        })
    }

    fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let rings = self.rings.iter().enumerate();
        rings.flat_map(|(ring, at)| (0..at.views.len()).map(move |view| Place { ring, view }))
    }

    /// Waiting views, each with the version that it waits for.
    fn waiting(&self) -> Vec<(Place, Place)> {
        let waiting = self.places().filter_map(|place| {
            let view = &self.rings[place.ring].views[place.view];
            let before = self.find(&view.spec.window.view, |old| old.version < view.version)?;
            view.turn.waiting.then_some((place, before))
        });
        waiting.collect()
    }

    /// Says where versions meet, once every partition is read for the newer one.
    pub(super) fn appoint(&mut self) {
        for (new, old) in self.waiting() {
            let (new_ring, old_ring) = (&self.rings[new.ring], &self.rings[old.ring]);
            let (view, before) = (&new_ring.views[new.view], &old_ring.views[old.view]);
            if view.turn.from_ms.is_some() || !new_ring.is_fed(view.version, &self.table) {
                continue;
            }
            let first_pane = new_ring.first_pane_ms(&self.table).max(view.turn.since_ms);
            let reached = old_ring.closed_ms(&self.table).max(new_ring.met_ms(&self.table));
            let from_ms = meeting(&before.spec.window, &view.spec.window, reached, first_pane);
            self.rings[old.ring].views[old.view].turn.until_ms = Some(from_ms);
            self.rings[new.ring].views[new.view].turn.from_ms = Some(from_ms);
        }
    }

    /// Lets the versions take over whose predecessors are done, and closes what they have to close.
    pub(super) fn hand_over(&mut self, assembled: &mut Assembled) -> Result<(), Error> {
        let mut over = Vec::new();
        for (new, old) in self.waiting() {
            let ring = &self.rings[old.ring];
            if !ring.views[old.view].is_over(ring.closed_ms(&self.table)) {
                continue;
            }
            let ring = &mut self.rings[new.ring];
            ring.views[new.view].turn.waiting = false;
            ring.views[new.view].turn.fresh = true;
            let first_pane = ring.first_pane_ms(&self.table);
            if let Some(now) = ring.closed_ms(&self.table) {
                ring.close(new.view, None, now, first_pane, assembled)?;
                ring.evict(now);
            }
            let old = &self.rings[old.ring].views[old.view];
            over.push((old.version, old.spec.window.view.clone()));
        }
        if over.is_empty() {
            return Ok(());
        }
        assembled.handed_over = true;
        for ring in &mut self.rings {
            ring.views
                .retain(|view| !over.contains(&(view.version, view.spec.window.view.clone())));
        }
        self.tidy();
        Ok(())
    }

    /// Forgets rings that nobody looks at, and what is known of sources that nobody reads.
    fn tidy(&mut self) {
        self.rings
            .retain(|ring| !ring.views.is_empty() || ring.watched.is_some());
        let Self { table, rings } = self;
        table
            .sources
            .retain(|source, _| rings.iter().any(|ring| ring.reads(*source)));
        table
            .unions
            .retain(|union, _| rings.iter().any(|ring| ring.union.as_ref() == Some(union)));
    }

    pub(super) fn reads(&self, source: u64) -> bool {
        self.rings.iter().any(|ring| ring.reads(source))
    }

    /// The oldest version that a view is of; `None` without views.
    pub fn oldest_version(&self) -> Option<u64> {
        let views = self.rings.iter().flat_map(|ring| &ring.views);
        views.map(|view| view.version).min()
    }

    /// The version of a view that closes its windows now.
    pub fn in_turn(&self, view: &str) -> Option<u64> {
        let place = self.find(view, |view| !view.turn.waiting)?;
        Some(self.rings[place.ring].views[place.view].version)
    }

    /// Where every view stands.
    pub fn standings(&self) -> Vec<Standing> {
        let views = self.rings.iter().flat_map(|ring| &ring.views);
        let standing = |view: &View| Standing {
            version: view.version,
            view: view.spec.window.view.clone(),
            turn: view.turn,
        };
        views.map(standing).collect()
    }

    /// Starts from a table and standings that were written at low-water, with the versions that they are of, oldest first. Without
    /// standings every view is in its turn.
    pub fn restored(
        versions: &[(u64, &[Pipeline])],
        table: ProgressTable,
        standings: Option<&[Standing]>,
    ) -> Result<Self, Error> {
        let mut assembler = Self {
            table: ProgressTable::default(),
            rings: Vec::new(),
        };
        for (version, pipelines) in versions {
            assembler.rings.iter_mut().for_each(|ring| ring.watched = None);
            for (index, pipeline) in pipelines.iter().enumerate() {
                for sets in ring_sets(pipeline) {
                    let ring = assembler.ring(&sets, pipeline)?;
                    assembler.watch(ring, *version, index, &sets, pipeline);
                    for (at, spec) in pipeline.views.iter().enumerate() {
                        let stands = |standing: &&Standing| {
                            standing.version == *version && standing.view == spec.window.view && spec.pane_sets == sets
                        };
                        let turn = match standings {
                            Some(standings) => standings.iter().find(stands).map(|standing| standing.turn),
                            None => (spec.pane_sets == sets).then(Turn::default),
                        };
                        if let Some(turn) = turn {
                            assembler.rings[ring].views.push(View {
                                version: *version,
                                pipeline: index,
                                index: at,
                                turn,
                                spec: spec.clone(),
                                missing: Default::default(),
                                shown: Default::default(),
                                sessions: Default::default(),
                            });
                        }
                    }
                }
            }
        }
        assembler.table = table;
        assembler.tidy();
        Ok(assembler)
    }
}

impl Ring {
    /// Whether every partition of its sources is read for this version, and knows from where on it has all panes.
    fn is_fed(&self, version: u64, table: &ProgressTable) -> bool {
        self.feeds.iter().all(|feed| {
            let fed = |source: &SourceTable| {
                source.partition_count > 0
                    && (0..source.partition_count).all(|partition| {
                        source.partitions.get(&partition).is_some_and(|partition| {
                            let active = partition.sets.iter().find(|active| active.set == feed.set);
                            let begun = active.map_or(partition.idle, |active| active.first_pane_ms != Some(i64::MAX));
                            partition.version >= version && begun
                        })
                    })
            };
            table.sources.get(&feed.source).is_some_and(fed)
        })
    }
}

/// The end at which two versions meet: the older one has closed no window that ends later, and the newer one has every pane of those that
/// do. `reached_ms` is a watermark that the older one has not passed.
fn meeting(old: &WindowSpec, new: &WindowSpec, reached_ms: Option<i64>, first_pane_ms: Option<i64>) -> i64 {
    let closed_ms = reached_ms.map(|reached_ms| reached_ms - old.lateness_ms);
    if old.session_gap_ms.is_some() || new.session_gap_ms.is_some() {
        let before = new.session_gap_ms.unwrap_or(new.size_ms - new.slide_ms);
        let whole = first_pane_ms.map(|first| first.saturating_add(before));
        let least = closed_ms.max(whole).unwrap_or(i64::MIN);
        return match (new.session_gap_ms, old.session_gap_ms) {
            _ if least == i64::MIN => least,
            (None, _) => new.end_after(least - 1),
            (_, None) => old.end_after(least - 1),
            // Sessions have no common ends.
            _ => least,
        };
    }
    let last_end = closed_ms.map(|closed_ms| old.end_after(closed_ms) - old.slide_ms);
    // The end before that of the first whole window.
    let whole = first_pane_ms.map(|first| new.end_after(first.saturating_add(new.size_ms - 1)) - new.slide_ms);
    let Some(first) = last_end.max(whole) else {
        // Nothing was ever read: there is nothing for the older one.
        return i64::MIN;
    };
    let apart = |window: &WindowSpec| window.size_ms == window.slide_ms;
    if !(apart(old) && apart(new)) {
        return first;
    }
    // Windows that do not overlap share the rows out: none is in two, or in none, where both end at one time.
    let from = new.end_after(first - 1);
    let candidates = (0..MEETING_ENDS_MAX).map(|at| from + at * new.slide_ms);
    let both = |end: &i64| old.end_after(*end - 1) == *end;
    candidates.into_iter().find(both).unwrap_or(from)
}
