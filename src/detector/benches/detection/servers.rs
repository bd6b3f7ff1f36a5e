//! Labelled multivariate servers (ASD, SMD): float `.npy` of train, test and labels.

use std::path::Path;

pub struct Server {
    pub name: String,
    pub features: usize,
    /// Train, then test, row by row.
    pub rows: Vec<f64>,
    pub train_rows: usize,
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
                labels: labels.iter().map(|label| *label > 0.5).collect(),
                step_ms,
                name,
            })
        })
        .collect()
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
