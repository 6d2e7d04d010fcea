//! What integration tests are made of.

#![allow(dead_code)]

pub mod h2;
pub mod nginx;
pub mod origin;
