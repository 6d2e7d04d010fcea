//! Integration tests: one binary, real sockets on loopback, no fixed ports, no sleeps.

mod kit;

mod directory;
mod origin;
