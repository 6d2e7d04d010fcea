//! What integration tests are made of.

#![allow(dead_code)]

pub mod nginx;
pub mod origin;
