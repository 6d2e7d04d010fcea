//! edge
pub mod access_log;
pub mod request_head;
pub mod response;
