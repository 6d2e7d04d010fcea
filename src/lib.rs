//! Groupcache-proxy: an HTTP caching reverse proxy whose nodes share one deduplicated cache.

pub mod admin;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod edge;
pub mod entry;
pub mod fields;
pub mod fill;
pub mod fleet;
pub mod flight;
pub mod freshness;
pub mod group;
pub mod key;
pub mod logging;
pub mod memory;
pub mod origin;
pub mod peer;
pub mod remembered;
pub mod ring;
pub mod samples;
pub mod semantics;
pub mod server;
pub mod slot;
pub mod source;
pub mod stats;
pub mod store;
#[cfg(test)]
mod testing;
