//! Integration tests: one binary, real sockets on loopback, no fixed ports, no sleeps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for other processes, which no test clock moves")]

mod kit;

mod admin;
mod bad_input;
mod caching;
mod commands;
mod crowds;
mod deposits;
mod directory;
mod equal;
mod failures;
mod fleet;
mod fuzz_corpus;
mod go;
mod history;
mod hot;
mod interim;
mod limits;
mod listeners;
mod membership;
mod memory;
mod origin;
mod purge;
mod reload;
mod sharing;
mod shutdown;
mod strict;
mod thumbnails;
mod tidy;
mod tls;
mod wire;
