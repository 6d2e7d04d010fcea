//! What integration tests are made of.

#![allow(dead_code)]

pub mod client;
pub mod counters;
pub mod dns;
pub mod echo;
pub mod fleet;
pub mod go;
pub mod h2;
pub mod nginx;
pub mod node;
pub mod origin;
pub mod poll;
pub mod tls;
