//! Rows as JSON lines: a file per view and per detector.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use engine::{
    assemble::ClosedWindow,
    spec::{Pipeline, SinkInput},
};
use protocol::message::Anomaly;

use crate::{
    error::Refused,
    stages::{detect::Tap, rows::write_rows},
};

/// What one file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Of the view or detector.
    pub name: String,
    /// File name without its extension.
    pub file: String,
    pub lines: Vec<u8>,
}

/// The rows of every view, then of every detector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    pub views: Vec<Rows>,
    pub detectors: Vec<Rows>,
}

impl Replayed {
    /// Writes `NAME.jsonl` per view and detector into the folder, which is made. Files take their names when all of
    /// them are written.
    pub fn write(&self, folder: &Path) -> Result<(), Refused> {
        let refuse = |path: &Path, error: std::io::Error| Refused::new(format!("{}: {error}", path.display()));
        fs::create_dir_all(folder).map_err(|error| refuse(folder, error))?;
        let files = || self.views.iter().chain(&self.detectors);
        let part = |rows: &Rows| folder.join(format!(".{}.jsonl.part", rows.file));
        for rows in files() {
            let path = part(rows);
            if let Err(error) = fs::write(&path, &rows.lines) {
                files().for_each(|rows| drop(fs::remove_file(part(rows))));
                return Err(refuse(&path, error));
            }
        }
        for rows in files() {
            let path = folder.join(format!("{}.jsonl", rows.file));
            fs::rename(part(rows), &path).map_err(|error| refuse(&path, error))?;
        }
        Ok(())
    }
}

/// Collects what the stages show.
pub struct Lines {
    replayed: Replayed,
    /// Sources of each view.
    sources: Vec<Vec<usize>>,
    /// By source, once all of it has been read: time of its last row.
    last_ms: Vec<Option<i64>>,
    /// By detector, its sources.
    detector_sources: Vec<Vec<usize>>,
}

impl Lines {
    pub fn new(pipeline: &Pipeline) -> Self {
        let views: Vec<Rows> = pipeline.views.iter().map(|view| rows(&view.name, "")).collect();
        let detectors = pipeline.detectors.iter().map(|detector| {
            let twin = views.iter().any(|view| view.name == detector.name);
            rows(&detector.name, if twin { ".detector" } else { "" })
        });
        Self {
            sources: (0..pipeline.views.len())
                .map(|view| super::sources_of(pipeline, view))
                .collect(),
            last_ms: vec![None; pipeline.sources.len()],
            detector_sources: pipeline
                .detectors
                .iter()
                .map(|detector| match detector.input {
                    engine::spec::DetectorInput::View(view) => super::sources_of(pipeline, view),
                    engine::spec::DetectorInput::PaneSet(set) => vec![pipeline.pane_sets[set].source],
                })
                .collect(),
            replayed: Replayed {
                detectors: detectors.collect(),
                views,
            },
        }
    }

    /// A source has been read to its end: only windows that hold one of its rows still count.
    pub fn end(&mut self, source: usize, last_ms: i64) {
        self.last_ms[source] = Some(last_ms);
    }

    /// What has come of a view or detector so far.
    pub fn of(&self, input: SinkInput) -> &[u8] {
        match input {
            SinkInput::View(view) => &self.replayed.views[view].lines,
            SinkInput::Detector(detector) => &self.replayed.detectors[detector].lines,
            // In a replay no row is late; what is no row is named.
            SinkInput::Late(_) | SinkInput::DeadLetters(_) => &[],
        }
    }

    pub fn take(&mut self) -> Replayed {
        let nothing = Replayed {
            views: Vec::new(),
            detectors: Vec::new(),
        };
        std::mem::replace(&mut self.replayed, nothing)
    }

    /// Whether this time is beyond the last row of all of these sources.
    fn is_over(&self, sources: &[usize], time_ms: i64) -> bool {
        let last_ms: Option<Vec<i64>> = sources.iter().map(|source| self.last_ms[*source]).collect();
        last_ms.is_some_and(|last_ms| last_ms.iter().all(|last_ms| time_ms > *last_ms))
    }

    fn score(&mut self, score: &Anomaly, silent: bool) {
        let mut detectors = self.replayed.detectors.iter();
        let Some(at) = detectors.position(|rows| rows.name == score.detector) else {
            return;
        };
        // Nothing is told silent after the last row.
        let time_ms = if silent { score.window_end } else { score.window_start };
        if self.is_over(&self.detector_sources[at], time_ms) {
            return;
        }
        let lines = &mut self.replayed.detectors[at].lines;
        serde_json::to_writer(&mut *lines, score).expect("scores have string keys, and a Vec takes all");
        lines.push(b'\n');
    }
}

fn rows(name: &str, suffix: &str) -> Rows {
    Rows {
        name: name.to_owned(),
        file: format!("{}{suffix}", file_name(name)),
        lines: Vec::new(),
    }
}

/// A name that any file system takes: other bytes than letters, digits, `_` and `-` as %XX.
fn file_name(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// The collector, as the stage holds it.
pub struct Shared(pub Arc<Mutex<Lines>>);

impl Tap for Shared {
    fn closed(&mut self, window: &ClosedWindow) {
        let mut lines = super::lock(&self.0);
        let begun = !lines.is_over(&lines.sources[window.view], window.early_ms.unwrap_or(window.start_ms));
        if window.rows.num_rows() > 0 && begun {
            write_rows(&window.rows, &mut lines.replayed.views[window.view].lines);
        }
    }

    fn scored(&mut self, score: &Anomaly) {
        super::lock(&self.0).score(score, false);
    }

    fn silent(&mut self, score: &Anomaly) {
        super::lock(&self.0).score(score, true);
    }
}
