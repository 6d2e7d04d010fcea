//! Groupcache-proxy: an HTTP caching reverse proxy whose nodes share one deduplicated cache.

pub mod clock;
pub mod config;
pub mod fields;
pub mod origin;
pub mod ring;
pub mod source;
#[cfg(test)]
pub mod testing;
