//! Why a part of the simulation cannot go on.

use std::{io, path::PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the shop has no service {name:?}: it has {}", crate::graph::SHOP.map(|role| role.name).join(", "))]
    UnknownService { name: String },
    #[error("{what} {}", path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the program {name} is not beside {}: build it with `cargo build --workspace --bins`", beside.display())]
    MissingProgram { name: &'static str, beside: PathBuf },
    #[error("the broker failed")]
    Broker(#[from] kafka::Error),
    #[error("{0}")]
    Failed(String),
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    pub(crate) fn path(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { what, path, source }
    }
}
