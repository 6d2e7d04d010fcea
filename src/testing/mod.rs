//! What unit tests share: a [`Scripted`] source, a raw scripted origin, and the one suite that every source passes.

mod contract;
#[allow(dead_code)]
#[path = "../../tests/it/kit/origin.rs"]
pub mod raw_origin;
mod scripted;

pub use contract::{FIRST_BYTES, Stage, source_contract};
pub use raw_origin::Gate;
pub use scripted::{Script, Scripted};

use bytes::Bytes;

use crate::fields::Fields;
use crate::source::{Ask, FetchError, Fetched, Method};

/// A `GET` for `target` with these fields.
pub fn get(target: &str, fields: &[(&str, &str)]) -> Ask {
    Ask {
        group: "test".into(),
        key: Bytes::copy_from_slice(target.trim_start_matches('/').as_bytes()),
        target: Bytes::copy_from_slice(target.as_bytes()),
        host: None,
        method: Method::Get,
        fields: Fields::from_pairs(fields.iter().copied()).expect("well-formed fields"),
    }
}

/// A `HEAD` for `target`.
pub fn head(target: &str) -> Ask {
    Ask { method: Method::Head, ..get(target, &[]) }
}

/// Reads a body to its end.
///
/// # Errors
/// That of the body.
pub async fn read_all(fetched: &mut Fetched) -> Result<Vec<u8>, FetchError> {
    let mut all = Vec::new();
    while let Some(chunk) = fetched.body.chunk().await? {
        assert!(!chunk.is_empty(), "a chunk is never empty");
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}
