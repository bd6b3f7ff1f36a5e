//! A detector by its name, with options as an operator writes them.

use std::sync::Arc;

use detector::{Detector, Value};

pub fn build(name: &str, options: &[(&str, &str)], features: usize) -> Arc<dyn Detector> {
    let options: Vec<(String, Value)> = options
        .iter()
        .map(|(name, value)| ((*name).into(), Value::Text((*value).into())))
        .collect();
    let features: Vec<String> = (0..features).map(|index| format!("f{index}")).collect();
    detector::build(name, &options, &features).unwrap_or_else(|error| panic!("{name}: {error}"))
}
