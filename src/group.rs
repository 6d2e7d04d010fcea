//! A group: what its keys are, whom to ask, and by which rules answers are kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fields::Fields;
use crate::freshness::{RequestDirectives, Rules};
use crate::semantics::target::{KeyRule, QueryRule};
use crate::semantics::variant::{RequestHeaders, VariantPolicy};
use crate::source::{Ask, Method, Source};
use crate::stats::GroupStats;
use crate::store::GroupId;

/// One group of the configuration with all that its requests need. Replaced as a whole by a reload; the number and the
/// counters of a group go on under the same name.
pub struct Group {
    /// Number in the store.
    pub id: GroupId,
    /// Name in configuration, statistics and peer questions.
    pub name: Arc<str>,
    /// Freshness rules.
    pub rules: Rules,
    /// Which of a client's fields reach the origin.
    pub request_headers: RequestHeaders,
    /// Which variants are kept apart, and how many.
    pub variants: VariantPolicy,
    /// How what follows the matched prefix becomes a key, and back.
    pub key: KeyRule,
    /// What of the query belongs to the key.
    pub query: QueryRule,
    /// Whether answers are cached at all.
    pub cached: bool,
    /// Whether a request with cookies passes (else they are stripped).
    pub cookies_pass: bool,
    /// Bodies above this many bytes are never stored.
    pub object_bytes_max: u64,
    /// How long a storable fill may take in all.
    pub fill_timeout: Duration,
    /// The origin or directory.
    pub source: Arc<dyn Source>,
    /// Counters.
    pub stats: Arc<GroupStats>,
}

impl Group {
    /// What the origin is asked for a key; `None` when the key cannot have come from this group.
    pub fn ask(&self, key: &Bytes, method: Method, fields: Fields) -> Option<Ask> {
        let (host, target) = self.key.target_of(key)?;
        Some(Ask { group: self.name.clone(), key: key.clone(), target, host, method, fields })
    }

    /// The client's directives, where this group honours them.
    pub fn directives(&self, fields: &Fields) -> RequestDirectives {
        if self.rules.honour_request_directives { RequestDirectives::parse(fields) } else { RequestDirectives::default() }
    }
}
