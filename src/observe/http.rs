//! `/metrics`, `/healthz` and `/readyz`, on a thread of their own.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::{self, JoinHandle},
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::sync::oneshot;

use crate::{Error, Health, Metrics};

/// Serves until it is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(listen: SocketAddr, metrics: Arc<Metrics>, health: Arc<Health>) -> Result<Self, Error> {
        let failed = |source| Error::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let router = Router::new()
            .route("/metrics", get(text))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state((metrics, health));
        let thread = thread::spawn(move || {
            let served = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                // Not a graceful end: an open connection of a scraper must not hold the process up.
                tokio::select! {
                    biased;
                    _ = stopped => Ok(()),
                    served = axum::serve(listener, router) => served,
                }
            });
            if let Err(error) = served {
                tracing::error!(%error, "metrics are no longer served");
            }
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Shared = State<(Arc<Metrics>, Arc<Health>)>;

async fn text(State((metrics, _)): Shared) -> impl IntoResponse {
    ([("content-type", prometheus::TEXT_FORMAT)], metrics.text())
}

async fn healthz(State((_, health)): Shared) -> impl IntoResponse {
    answer(&health.ailments())
}

async fn readyz(State((_, health)): Shared) -> impl IntoResponse {
    answer(&health.hindrances())
}

fn answer(problems: &[String]) -> (StatusCode, String) {
    match problems {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        problems => (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n"),
    }
}
