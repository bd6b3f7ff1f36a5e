#![allow(clippy::unwrap_used)]

use super::*;
use crate::pipelines::Detectors;

const PIPELINE: &str = "
CREATE SOURCE disks (service STRING, used DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND)
WITH (connector = 'kafka', topic = 'disks', format = 'json');

CREATE FEATURE VIEW disk AS
SELECT service, window_start, window_end, max(used) AS used_percent
FROM TUMBLE(TABLE disks, DESCRIPTOR(ts), INTERVAL '1' MINUTE)
GROUP BY service, window_start, window_end;

CREATE DETECTOR fills ON disk KEY (service) FEATURES (used_percent) USING forecast_breach WITH (ceiling = 95);
CREATE DETECTOR full ON disk KEY (service) FEATURES (used_percent) USING static_threshold WITH (upper = 95);

CREATE POLICY before ON fills DO ACTION 'rollback' TARGET service EXPIRES AFTER INTERVAL '1' MINUTE MODE AUTO;
CREATE POLICY after ON full DO ACTION 'rollback' TARGET service EXPIRES AFTER INTERVAL '1' MINUTE MODE AUTO;
";

/// The gate for what is foretold asks only about policies that say so (scenario 41).
#[test]
fn a_policy_on_a_forecast_knows_that_nothing_is_wrong_yet() {
    let pipeline = sql::compile("disks", PIPELINE, &Detectors)
        .unwrap_or_else(|refused| panic!("{}", refused.render("disks", PIPELINE, false)));
    let made = policies(&[pipeline], &Topics::new("homeostat."));
    let foretells: Vec<(&str, bool)> = made
        .iter()
        .map(|policy| (policy.name.as_str(), policy.predictive))
        .collect();
    assert_eq!(foretells, [("before", true), ("after", false)]);
}
