//! Integration tests: one binary, real sockets on loopback, no fixed ports, no sleeps.

mod kit;

mod admin;
mod commands;
mod directory;
mod fleet;
mod origin;
mod reload;
mod shutdown;
mod tls;
