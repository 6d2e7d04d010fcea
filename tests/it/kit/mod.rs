//! What integration tests are made of.

#![allow(dead_code)]

pub mod client;
pub mod fleet;
pub mod h2;
pub mod nginx;
pub mod node;
pub mod origin;
