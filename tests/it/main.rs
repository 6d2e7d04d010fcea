//! Integration tests: one binary, real sockets on loopback, no fixed ports, no sleeps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for other processes, which no test clock moves")]

mod kit;

mod admin;
mod commands;
mod directory;
mod fleet;
mod origin;
mod reload;
mod shutdown;
mod tidy;
mod tls;
