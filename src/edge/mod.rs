//! edge
pub mod access_log;
pub mod admission;
pub mod body;
pub mod connection;
pub mod endpoints;
pub mod h2;
pub mod lane;
pub mod pass;
pub mod request_head;
pub mod response;
pub mod sites;
