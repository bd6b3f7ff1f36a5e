//! SIGTERM and Ctrl-C ask for an ordered drain; a second one ends the process at once.

use std::thread;

use kafka::Shutdown;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// Watches for the signals on a thread of its own.
pub fn request_on_signal(shutdown: Shutdown) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            for again in [false, true] {
                tokio::select! {
                    biased;
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if again {
                    std::process::exit(130);
                }
                info!("draining; once more to stop at once");
                shutdown.request();
            }
        });
    })?;
    Ok(())
}
