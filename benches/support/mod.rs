//! What `parts` and `instructions` measure.

pub mod node;
pub mod operations;
