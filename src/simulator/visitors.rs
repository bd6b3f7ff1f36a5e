//! Visitors of the shop: they come in through the front, look, order, and count what they did not get.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::{
    Error, Random,
    call::{self, TraceContext},
    control::{self, Hello},
    graph::ENTRANCE,
};

/// What visitors are called on the control channel.
pub const NAME: &str = "visitors";
/// Visitors at a time. Each waits for its answer, so a slow shop is not buried.
const VISITORS: usize = 5;
/// A visitor looks at an answer for so long, on average.
const THINKS_MS: f64 = 350.0;

/// Visits until the process ends.
pub fn run(folder: PathBuf, seed: u64) -> Result<(), Error> {
    let hello = Hello {
        service: NAME.into(),
        pid: std::process::id(),
        action_id: None,
    };
    control::obey(&folder, &hello, |_| ())?;
    let (visits, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for visitor in 0..VISITORS {
            let (folder, visits, failed) = (&folder, &visits, &failed);
            scope.spawn(move || {
                let mut random = Random::derive(seed, &format!("visitor {visitor}"));
                loop {
                    let thinks_ms = THINKS_MS * -(1.0 - random.unit()).ln().max(-5.0);
                    thread::sleep(Duration::from_secs_f64(thinks_ms / 1000.0));
                    let trace = TraceContext {
                        trace_id: random.bytes(),
                        span_id: random.bytes(),
                    };
                    let served = call::call(folder, ENTRANCE, "visit", trace).is_ok_and(|status| status == 200);
                    let visit = visits.fetch_add(1, Ordering::Relaxed) + 1;
                    let lost = failed.fetch_add(u64::from(!served), Ordering::Relaxed) + u64::from(!served);
                    if visit.is_multiple_of(500) {
                        tracing::info!(visits = visit, failed = lost, "visitors");
                    }
                }
            });
        }
    });
    Ok(())
}
