//! Groupcache-proxy: an HTTP caching reverse proxy whose nodes share one deduplicated cache.

pub mod clock;
pub mod config;
pub mod fields;
pub mod flight;
pub mod peer;
pub mod ring;
pub mod source;
pub mod stats;
