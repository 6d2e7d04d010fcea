//! Groupcache-proxy: an HTTP caching reverse proxy whose nodes share one deduplicated cache.

pub mod clock;
pub mod config;
pub mod fields;
pub mod key;
pub mod memory;
pub mod ring;
pub mod store;
