//! Groupcache-proxy: an HTTP caching reverse proxy whose nodes share one deduplicated cache.

pub mod cache;
pub mod clock;
pub mod config;
pub mod entry;
pub mod fences;
pub mod fields;
pub mod fill;
pub mod fleet;
pub mod flight;
pub mod freshness;
pub mod group;
pub mod invalidate;
pub mod key;
pub mod memory;
pub mod origin;
pub mod parts;
pub mod remembered;
pub mod ring;
pub mod semantics;
pub mod slot;
pub mod source;
pub mod stats;
pub mod store;
#[cfg(test)]
mod testing;
