//! Measures over labelled rows.

/// Harmonic mean of precision and recall over rows.
pub fn point_f1(alarms: &[bool], labels: &[bool]) -> f64 {
    let both = alarms
        .iter()
        .zip(labels)
        .filter(|(alarm, label)| **alarm && **label)
        .count();
    let either = alarms.iter().filter(|alarm| **alarm).count() + labels.iter().filter(|label| **label).count();
    if either == 0 {
        0.0
    } else {
        2.0 * both as f64 / either as f64
    }
}

/// Area under precision over recall, ties as one step (average precision).
pub fn auc_pr(scores: &[f64], labels: &[bool]) -> f64 {
    soft_auc_pr(
        scores,
        &labels
            .iter()
            .map(|label| f64::from(u8::from(*label)))
            .collect::<Vec<_>>(),
        &[],
    )
}

/// Volume under the PR surface (Paparrizos et al., VLDB 2022): average precision with label edges softened over 0 to `width`
/// rows, averaged over the widths; recall is discounted by the share of events found.
pub fn vus_pr(scores: &[f64], labels: &[bool], width: usize) -> f64 {
    let events = events(labels);
    let widths: Vec<usize> = (0..=4).map(|step| step * width / 4).collect();
    let total: f64 = widths
        .iter()
        .map(|width| soft_auc_pr(scores, &soften(labels, &events, *width), &events))
        .sum();
    total / widths.len() as f64
}

fn soften(labels: &[bool], events: &[(usize, usize)], width: usize) -> Vec<f64> {
    let mut soft: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
    let reach = width / 2;
    for (from, to) in events {
        for away in 1..=reach {
            let weight = (1.0 - away as f64 / (2 * reach + 1) as f64).sqrt();
            for at in [from.checked_sub(away), Some(to - 1 + away)].into_iter().flatten() {
                if let Some(label) = soft.get_mut(at) {
                    *label = label.max(weight);
                }
            }
        }
    }
    soft
}

fn soft_auc_pr(scores: &[f64], soft: &[f64], events: &[(usize, usize)]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let positives: f64 = soft.iter().sum();
    if positives == 0.0 {
        return 0.0;
    }
    let mut event_of = vec![usize::MAX; scores.len()];
    for (event, (from, to)) in events.iter().enumerate() {
        event_of[*from..*to].fill(event);
    }
    let mut found = vec![false; events.len()];
    let (mut hits, mut rows, mut events_found, mut area, mut recall_before) = (0.0, 0.0, 0usize, 0.0, 0.0);
    let mut at = 0;
    while at < order.len() {
        let level = scores[order[at]];
        while at < order.len() && scores[order[at]] == level {
            let row = order[at];
            hits += soft[row];
            rows += 1.0;
            if event_of[row] != usize::MAX && !found[event_of[row]] {
                found[event_of[row]] = true;
                events_found += 1;
            }
            at += 1;
        }
        let share = if events.is_empty() {
            1.0
        } else {
            events_found as f64 / events.len() as f64
        };
        let recall = (hits / positives).min(1.0) * share;
        area += (recall - recall_before).max(0.0) * (hits / rows).min(1.0);
        recall_before = recall;
    }
    area
}

/// Runs of true, as half-open ranges.
pub fn events(labels: &[bool]) -> Vec<(usize, usize)> {
    let mut events = Vec::new();
    let mut start = None;
    for (row, label) in labels.iter().enumerate() {
        match (start, label) {
            (None, true) => start = Some(row),
            (Some(from), false) => {
                events.push((from, row));
                start = None;
            }
            _ => {}
        }
    }
    events.extend(start.map(|from| (from, labels.len())));
    events
}

/// F1 over events: a labelled event is found by any alarm in it; an alarm's run is true if it touches a labelled event.
pub fn event_f1(alarms: &[bool], labels: &[bool]) -> f64 {
    let labelled = events(labels);
    let alarmed = events(alarms);
    if labelled.is_empty() || alarmed.is_empty() {
        return 0.0;
    }
    let touched = |of: &[(usize, usize)], by: &[bool]| {
        of.iter()
            .filter(|(from, to)| by[*from..*to].iter().any(|row| *row))
            .count() as f64
            / of.len() as f64
    };
    let recall = touched(&labelled, alarms);
    let precision = touched(&alarmed, labels);
    if recall + precision == 0.0 {
        0.0
    } else {
        2.0 * recall * precision / (recall + precision)
    }
}

/// Rows from the start of each event that was found to its first alarm.
pub fn delays(alarms: &[bool], labels: &[bool]) -> Vec<usize> {
    events(labels)
        .iter()
        .filter_map(|(from, to)| alarms[*from..*to].iter().position(|alarm| *alarm))
        .collect()
}

/// Point F1 at the threshold that is best in hindsight.
pub fn best_f1(scores: &[f64], labels: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let labelled = labels.iter().filter(|label| **label).count();
    let (mut hits, mut best) = (0, 0.0f64);
    for (at, row) in order.iter().enumerate() {
        hits += usize::from(labels[*row]);
        let ties = order.get(at + 1).is_some_and(|next| scores[*next] == scores[*row]);
        if !ties {
            best = best.max(2.0 * hits as f64 / (at + 1 + labelled) as f64);
        }
    }
    best
}

/// Alarmed and all rows of labelled events of at least `rows_min` rows.
pub fn long_fault_rows(alarms: &[bool], labels: &[bool], rows_min: usize) -> (usize, usize) {
    events(labels)
        .iter()
        .filter(|(from, to)| to - from >= rows_min)
        .fold((0, 0), |(alarmed, all), (from, to)| {
            let inside = &alarms[*from..*to];
            (
                alarmed + inside.iter().filter(|alarm| **alarm).count(),
                all + inside.len(),
            )
        })
}

/// Rows outside labelled events widened by their own length on both sides.
pub fn away_from(labels: &[bool]) -> Vec<bool> {
    let mut away = vec![true; labels.len()];
    for (from, to) in events(labels) {
        let width = to - from;
        away[from.saturating_sub(width)..(to + width).min(labels.len())].fill(false);
    }
    away
}
