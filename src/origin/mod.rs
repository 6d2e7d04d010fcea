//! Where bytes come from in the end: servers that are asked over HTTP, or a directory.
//!
//! Both are a [`Source`](crate::source::Source). [`HttpOrigin`] speaks through pingora's connector and trusts an answer only as
//! far as its framing proves it. [`Directory`] answers as a good origin would: validators, ranges, types, and no way out.

mod body;
mod directory;
pub mod head;
mod http;
mod idle;
mod plain;
mod settings;
mod upstream;

#[cfg(test)]
mod tests;

pub use directory::{Directory, DirectoryError, DirectorySettings, FileValidators};
pub use http::{HttpOrigin, PassChoice};
pub use settings::{Balance, HeaderRules, Health, HostRule, OriginSettings, OriginUrl, SettingsError, Timeouts};
pub use upstream::{FAILING_FOR, UpstreamSnapshot, UpstreamState};
