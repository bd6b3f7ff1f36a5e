//! Learned choice of an action: a forest of decision trees trained from past incidents says which action fits, one tree
//! says why, and Thompson sampling picks among those that the gates allow.
//!
//! Everything here is a function of its arguments. Random draws come from a hash of what is decided, and the probability
//! of each choice is computed before it is drawn, so that what is logged is exactly what was used.

mod bandit;
mod encode;
mod evaluate;
mod forest;
mod history;
mod model;
pub mod table;

pub use bandit::{Arm, Draw, draw};
pub use encode::{Encoder, Value};
pub use evaluate::{Estimate, Evaluation, Logged, Promotion, evaluate, promote};
pub use forest::{Forest, Tree};
pub use history::{Drawing, examples, halves, log};
pub use model::{Example, Model, Ranking, TrainError, TrainOptions, train};

#[cfg(test)]
mod tests;
