//! Panes and windows: the aggregate stage, and the half of detect that assembles windows. See `src/README.md`.

pub mod spec;
