//! The series, its band, alarms and accepted level shifts as SVG, in bounded memory: neighbouring rows are merged until they fit the width.

use std::fmt::Write;

use detector::Score;

const WIDTH: usize = 1400;
const PANEL: usize = 180;
const GAP: usize = 30;
const LEFT: usize = 90;
const TOP: usize = 30;
/// Features beyond these are not drawn.
const PANELS_MAX: usize = 12;

/// What is drawn of one feature over the rows of one column.
#[derive(Clone, Copy)]
struct Span {
    least: f64,
    most: f64,
    lower: f64,
    upper: f64,
    has_shifted: bool,
}

impl Span {
    fn merge(&mut self, later: &Self) {
        self.least = self.least.min(later.least);
        self.most = self.most.max(later.most);
        self.has_shifted |= later.has_shifted;
        if later.lower.is_finite() && later.upper.is_finite() {
            (self.lower, self.upper) = (later.lower, later.upper);
        }
    }
}

struct Column {
    score: f64,
    spans: Vec<Span>,
}

impl Column {
    fn merge(&mut self, later: &Self) {
        self.score = self.score.max(later.score);
        for (span, later) in self.spans.iter_mut().zip(&later.spans) {
            span.merge(later);
        }
    }
}

pub struct Plot {
    names: Vec<String>,
    times_ms: Option<(i64, i64)>,
    columns: Vec<Column>,
    /// Rows of every column but the last, and of the last.
    rows_per_column: u64,
    rows_in_last: u64,
}

impl Plot {
    pub fn new(names: &[String]) -> Self {
        Self {
            names: names.iter().take(PANELS_MAX).cloned().collect(),
            times_ms: None,
            columns: Vec::new(),
            rows_per_column: 1,
            rows_in_last: 1,
        }
    }

    pub fn push(&mut self, time_ms: i64, features: &[f64], score: &Score) {
        let from = self.times_ms.map_or(time_ms, |(from, _)| from);
        self.times_ms = Some((from, time_ms));
        let of = |values: &[f64], index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let spans = (0..self.names.len())
            .map(|index| {
                let value = of(features, index);
                let (least, most) = if value.is_finite() {
                    (value, value)
                } else {
                    (f64::INFINITY, f64::NEG_INFINITY)
                };
                Span {
                    least,
                    most,
                    lower: of(&score.lower, index),
                    upper: of(&score.upper, index),
                    has_shifted: score.level_shifts.iter().any(|shift| shift.feature == index),
                }
            })
            .collect();
        let row = Column {
            score: score.score,
            spans,
        };
        match self.columns.last_mut() {
            Some(last) if self.rows_in_last < self.rows_per_column => {
                last.merge(&row);
                self.rows_in_last += 1;
            }
            _ => {
                if self.columns.len() == WIDTH {
                    self.halve();
                }
                self.columns.push(row);
                self.rows_in_last = 1;
            }
        }
    }

    fn halve(&mut self) {
        let columns = std::mem::take(&mut self.columns);
        for (index, column) in columns.into_iter().enumerate() {
            match self.columns.last_mut() {
                Some(last) if index % 2 == 1 => last.merge(&column),
                _ => self.columns.push(column),
            }
        }
        self.rows_per_column *= 2;
    }

    pub fn svg(&self) -> String {
        let panels = self.names.len() + 1;
        let (width, height) = (LEFT + WIDTH + 20, TOP + panels * (PANEL + GAP) + GAP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let top = |panel: usize| TOP + panel * (PANEL + GAP);
        for (panel, name) in self.names.iter().enumerate() {
            self.feature(&mut svg, top(panel), name, panel);
        }
        self.score(&mut svg, top(panels - 1));
        self.dates(&mut svg, height - 12);
        svg.push_str("</svg>\n");
        svg
    }

    fn x(&self, column: usize) -> f64 {
        LEFT as f64 + (column as f64 + 0.5) * WIDTH as f64 / self.columns.len().max(1) as f64
    }

    fn feature(&self, svg: &mut String, top: usize, name: &str, feature: usize) {
        let spans = || self.columns.iter().map(move |column| column.spans[feature]);
        let least = spans().map(|span| span.least).fold(f64::INFINITY, f64::min);
        let most = spans().map(|span| span.most).fold(f64::NEG_INFINITY, f64::max);
        if least > most {
            return frame(svg, top, name, "", "");
        }
        // In quarters, so that the widest range of all does not overflow.
        let margin = (most / 4.0 - least / 4.0).max(most.abs() * 1e-6).max(1e-300) * 0.05;
        let (low, high) = (least / 4.0 - margin, most / 4.0 + margin);
        let y = |value: f64| {
            let share = ((value / 4.0).clamp(low, high) - low) / (high - low);
            top as f64 + PANEL as f64 * (1.0 - share)
        };
        let (mut upper, mut lower, mut line) = (String::new(), Vec::new(), String::new());
        for (column, span) in spans().enumerate() {
            let x = self.x(column);
            if span.lower.is_finite() && span.upper.is_finite() {
                let _ = write!(upper, "{x:.1},{:.1} ", y(span.upper));
                lower.push(format!("{x:.1},{:.1} ", y(span.lower)));
            }
            if span.least < span.most {
                let _ = write!(line, "{x:.1},{:.1} {x:.1},{:.1} ", y(span.least), y(span.most));
            } else if span.least == span.most {
                let _ = write!(line, "{x:.1},{:.1} ", y(span.most));
            }
        }
        lower.reverse();
        let _ = writeln!(svg, "<polygon points=\"{upper}{}\" fill=\"#dce9f7\"/>", lower.concat());
        self.alarms(svg, top);
        self.shifts(svg, top, feature);
        let _ = writeln!(svg, "<polyline points=\"{line}\" fill=\"none\" stroke=\"#1f5a99\"/>");
        frame(svg, top, name, &tick(least), &tick(most));
    }

    fn alarms(&self, svg: &mut String, top: usize) {
        let mut from = 0;
        for run in self.columns.chunk_by(|a, b| (a.score >= 1.0) == (b.score >= 1.0)) {
            let to = from + run.len() - 1;
            if run[0].score >= 1.0 {
                // As wide as their rows, but to be seen in any case.
                let half = (self.x(1) - self.x(0)).max(1.0) / 2.0;
                let (x, width) = (self.x(from) - half, self.x(to) - self.x(from) + 2.0 * half);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{PANEL}\" fill=\"#c0392b\" fill-opacity=\"0.45\"/>"
                );
            }
            from = to + 1;
        }
    }

    fn shifts(&self, svg: &mut String, top: usize, feature: usize) {
        let columns = self.columns.iter().enumerate();
        for (column, _) in columns.filter(|(_, column)| column.spans[feature].has_shifted) {
            let (x, bottom) = (self.x(column), top + PANEL);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#27863f\" stroke-dasharray=\"6 3\"/>"
            );
        }
    }

    fn score(&self, svg: &mut String, top: usize) {
        let most = self.columns.iter().map(|column| column.score).fold(1.25, f64::max);
        let high = most.min(10.0);
        let y = |score: f64| top as f64 + PANEL as f64 * (1.0 - score.min(high) / high);
        let mut line = String::new();
        for (index, column) in self.columns.iter().enumerate() {
            let _ = write!(line, "{:.1},{:.1} ", self.x(index), y(column.score));
        }
        let _ = writeln!(svg, "<polyline points=\"{line}\" fill=\"none\" stroke=\"#555\"/>");
        let (alarm, right) = (y(1.0), LEFT + WIDTH);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{alarm:.1}\" y2=\"{alarm:.1}\" stroke=\"#c0392b\" stroke-dasharray=\"4\"/>"
        );
        frame(svg, top, "score", "0", &tick(high));
    }

    fn dates(&self, svg: &mut String, y: usize) {
        let Some((from_ms, to_ms)) = self.times_ms else {
            return;
        };
        for (anchor, x, time_ms) in [("start", LEFT, from_ms), ("end", LEFT + WIDTH, to_ms)] {
            if let Ok(instant) = jiff::Timestamp::from_millisecond(time_ms) {
                let _ = writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{instant}</text>"
                );
            }
        }
    }
}

/// Short enough to stand left of a panel.
fn tick(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (1e-3..1e6).contains(&size) {
        let digits = (3.0 - size.max(1.0).log10().floor()).max(0.0) as usize;
        format!("{value:.digits$}")
    } else {
        format!("{value:.2e}")
    }
}

fn frame(svg: &mut String, top: usize, name: &str, low: &str, high: &str) {
    let name = name
        .replace(char::is_control, " ")
        .replace('&', "&amp;")
        .replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{PANEL}\" fill=\"none\" stroke=\"#999\"/>"
    );
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{name}</text>", top - 6);
    let x = LEFT - 6;
    for (text, y) in [(high, top + 12), (low, top + PANEL)] {
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{text}</text>");
    }
}

#[cfg(test)]
mod tests {
    use detector::LevelShift;

    use super::*;

    fn drawn(rows: usize, value: impl Fn(usize) -> f64) -> Plot {
        let mut plot = Plot::new(&["a<b".into()]);
        for row in 0..rows {
            let score = Score {
                score: if row == rows / 2 { 2.0 } else { 0.1 },
                lower: vec![value(row) - 1.0],
                upper: vec![value(row) + 1.0],
                level_shifts: (row == rows / 3)
                    .then_some(LevelShift {
                        feature: 0,
                        old_level: 1.0,
                        new_level: 2.0,
                        since_ms: 0,
                    })
                    .into_iter()
                    .collect(),
                ..Score::default()
            };
            plot.push(row as i64 * 1000, &[value(row)], &score);
        }
        plot
    }

    #[test]
    fn no_row_is_lost_and_memory_is_bounded() {
        let plot = drawn(100_000, |row| if row == 77_777 { 50.0 } else { (row % 7) as f64 });
        assert!((WIDTH / 2..=WIDTH).contains(&plot.columns.len()));
        let rows = (plot.columns.len() as u64 - 1) * plot.rows_per_column + plot.rows_in_last;
        assert_eq!(rows, 100_000);
        assert!(plot.columns.iter().any(|column| column.spans[0].most == 50.0));
        let svg = plot.svg();
        assert_eq!(svg.matches("fill-opacity").count(), 1, "one alarm is drawn");
        assert_eq!(svg.matches("#27863f").count(), 1, "one level shift is drawn");
        assert!(svg.contains("a&lt;b") && svg.contains("1970-01-02"));
    }

    #[test]
    fn any_values_make_a_picture() {
        for value in [0.0, 1e300, -1e300, f64::MIN_POSITIVE, f64::NAN, f64::INFINITY, 5e9] {
            assert!(!drawn(10, |_| value).svg().contains("NaN"), "{value}");
        }
        let extremes = drawn(10, |row| if row % 2 == 0 { f64::MAX } else { f64::MIN });
        assert!(!extremes.svg().contains("NaN"));
        assert!(Plot::new(&[]).svg().ends_with("</svg>\n"));
    }
}
