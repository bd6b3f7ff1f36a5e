//! What integration tests share.

pub mod rig;
