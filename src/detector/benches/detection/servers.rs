//! Labelled multivariate servers: ASD and SMD (float `.npy` of train, test and labels), and generated ones with long faults.

use std::path::Path;

use crate::breach::Random;

pub struct Server {
    pub name: String,
    pub features: usize,
    /// Train, then test, row by row.
    pub rows: Vec<f64>,
    pub train_rows: usize,
    /// Rows from which may be learned.
    pub learned_rows: usize,
    pub labels: Vec<bool>,
    pub step_ms: i64,
}

pub fn load(directory: &Path, step_ms: i64) -> Result<Vec<Server>, String> {
    let entries = std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix("_train.npy")?.to_owned()))
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let part = |part: &str| read(&directory.join(format!("{name}_{part}.npy")));
            let (train_shape, mut rows) = part("train")?;
            let (_, test) = part("test")?;
            let (_, labels) = part("test_label")?;
            rows.extend(test);
            Ok(Server {
                features: train_shape.get(1).copied().unwrap_or(1),
                rows,
                train_rows: train_shape[0],
                learned_rows: usize::MAX,
                labels: labels.iter().map(|label| *label > 0.5).collect(),
                step_ms,
                name,
            })
        })
        .collect()
}

#[derive(Clone, Copy)]
pub enum Baseline {
    MaxZ,
    MeanZ2,
}

impl Server {
    /// The same without the first rows of its train part.
    pub fn begun_at(&self, row: usize) -> Self {
        let row = row.min(self.train_rows);
        Self {
            name: if row == 0 {
                self.name.clone()
            } else {
                format!("{} from {row}", self.name)
            },
            features: self.features,
            rows: self.rows[row * self.features..].to_vec(),
            train_rows: self.train_rows - row,
            learned_rows: self.learned_rows,
            labels: self.labels.clone(),
            step_ms: self.step_ms,
        }
    }

    pub fn times_ms(&self) -> impl Iterator<Item = i64> + use<> {
        let step_ms = self.step_ms;
        (0..).map(move |row| 1_700_000_000_000 + row * step_ms)
    }

    /// Scores of the test part by mean and deviation of the train part.
    pub fn baseline(&self, kind: Baseline) -> Vec<f64> {
        let (train, test) = self.rows.split_at(self.train_rows * self.features);
        let column = |feature: usize| train.iter().skip(feature).step_by(self.features);
        let rows = self.train_rows as f64;
        let moments: Vec<(f64, f64)> = (0..self.features)
            .map(|feature| {
                let mean = column(feature).sum::<f64>() / rows;
                let variance = column(feature).map(|value| (value - mean).powi(2)).sum::<f64>() / rows;
                (mean, variance.sqrt().max(1e-3))
            })
            .collect();
        test.chunks_exact(self.features)
            .map(|row| {
                let z = row
                    .iter()
                    .zip(&moments)
                    .map(|(value, (mean, deviation))| ((value - mean) / deviation).abs());
                match kind {
                    Baseline::MaxZ => z.fold(0.0, f64::max),
                    Baseline::MeanZ2 => z.map(|z| z * z).sum::<f64>() / self.features as f64,
                }
            })
            .collect()
    }
}

/// A server of 6 to 24 features that follow one daily load, three weeks of train and three of test with four faults of 200 to
/// 1000 rows: levels of a third of the features move by one to four times their daily swing.
pub fn generate(seed: u64) -> Server {
    const DAY: usize = 288;
    let mut random = Random::new(seed);
    let features = random.between(6.0, 25.0) as usize;
    let train_rows = 21 * DAY;
    let test_rows = 21 * DAY;
    let mut labels = vec![false; test_rows];
    let mut faults = Vec::new();
    for quarter in 0..4 {
        let from = quarter * test_rows / 4 + random.between(100.0, 300.0) as usize;
        let rows = random.between(200.0, 1000.0) as usize;
        labels[from..from + rows].fill(true);
        let moved: Vec<f64> = (0..features)
            .map(|_| {
                if random.unit() < 0.33 {
                    random.between(1.0, 4.0)
                } else {
                    0.0
                }
            })
            .collect();
        faults.push((train_rows + from..train_rows + from + rows, moved));
    }
    let scales: Vec<f64> = (0..features).map(|_| 10f64.powf(random.between(-2.0, 4.0))).collect();
    let mut rows = Vec::with_capacity((train_rows + test_rows) * features);
    for row in 0..train_rows + test_rows {
        let load = (row as f64 * std::f64::consts::TAU / DAY as f64).sin() + 0.1 * random.normal();
        let fault = faults.iter().find(|(span, _)| span.contains(&row));
        for (feature, scale) in scales.iter().enumerate() {
            let moved = fault.map_or(0.0, |(_, moved)| moved[feature]);
            rows.push(scale * (5.0 + load + moved + 0.1 * random.normal()));
        }
    }
    Server {
        name: format!("seed {seed}"),
        features,
        rows,
        train_rows,
        learned_rows: usize::MAX,
        labels,
        step_ms: 300_000,
    }
}

fn read(path: &Path) -> Result<(Vec<usize>, Vec<f64>), String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&bytes).ok_or_else(|| format!("{}: not a plain .npy", path.display()))
}

fn parse(bytes: &[u8]) -> Option<(Vec<usize>, Vec<f64>)> {
    let length = usize::from(u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?));
    let header = std::str::from_utf8(bytes.get(10..10 + length)?).ok()?;
    let data = bytes.get(10 + length..)?;
    let shape = header.split("'shape': (").nth(1)?.split(')').next()?;
    let shape: Vec<usize> = shape.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    let values = if header.contains("<f4") {
        data.chunks_exact(4)
            .map(|c| f64::from(f32::from_le_bytes([c[0], c[1], c[2], c[3]])))
            .collect()
    } else if header.contains("<f8") {
        data.chunks_exact(8)
            .filter_map(|c| Some(f64::from_le_bytes(c.try_into().ok()?)))
            .collect()
    } else {
        data.iter().map(|byte| f64::from(*byte)).collect()
    };
    Some((shape, values))
}
