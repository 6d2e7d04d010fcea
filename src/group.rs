//! A group: what its keys are, whom to ask, and by which rules answers are kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fields::Fields;
use crate::freshness::{RequestDirectives, Rules};
use crate::key::GroupId;
use crate::semantics::forward::ForwardPolicy;
use crate::semantics::key::{KeyTemplate, origin_target};
use crate::semantics::query::QueryRule;
use crate::semantics::target::Authority;
use crate::source::{Ask, Method, Source};
use crate::stats::GroupStats;

/// One group of the configuration with all that its requests need. Replaced as a whole by a reload; the number and the
/// counters of a group go on under the same name.
pub struct Group {
    /// Number in the store.
    pub id: GroupId,
    /// Name in configuration, statistics and peer questions.
    pub name: Arc<str>,
    /// Freshness rules.
    pub rules: Rules,
    /// Which of a client's fields reach the origin, and how they are folded into variants.
    pub forward: ForwardPolicy,
    /// How many variants of one key are kept.
    pub variants_max: usize,
    /// How what follows the matched prefix becomes a key, and back.
    pub keys: KeyRule,
    /// Whether answers are cached at all.
    pub cached: bool,
    /// Whether a request with cookies passes (else they are stripped).
    pub cookies_pass: bool,
    /// Bodies above this many bytes are never stored.
    pub object_bytes_max: u64,
    /// How long a storable fill may take in all.
    pub fill_timeout: Duration,
    /// How many requests may be at the origin at once, from the whole fleet; `None`: any number.
    pub limit: Option<Limit>,
    /// The origin or directory.
    pub source: Arc<dyn Source>,
    /// Counters.
    pub stats: Arc<GroupStats>,
}

/// How many requests may be at a group's origin, and where the others wait (see [`crate::permits`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// At the origin at once, from the whole fleet.
    pub requests_max: usize,
    /// How many may wait; one more is refused.
    pub waiting_max: usize,
    /// How long one waits before it is refused.
    pub patience: Duration,
}

/// What of a target belongs to the key, and the way back from a key to the target.
#[derive(Clone, Debug, Default)]
pub struct KeyRule {
    /// The group's `key`.
    pub template: KeyTemplate,
    /// The group's `query`.
    pub query: QueryRule,
    /// `origin_host: client`: the origin answers by `Host`, so it stands first in the key, up to the first `/`.
    pub with_host: bool,
}

impl Group {
    /// What the origin is asked for a key; `None` when the key cannot have come from this group.
    pub fn ask(&self, key: &Bytes, method: Method, fields: Fields) -> Option<Ask> {
        let (host, target) = self.keys.target_of(key)?;
        Some(Ask { group: self.name.clone(), key: key.clone(), target, host, method, fields })
    }

    /// The client's directives, where this group honours them.
    pub fn directives(&self, fields: &Fields) -> RequestDirectives {
        if self.rules.honour_request_directives {
            RequestDirectives::parse(fields)
        } else {
            RequestDirectives::default()
        }
    }
}

impl KeyRule {
    /// Writes the key of a target into `key`, which a hit uses again and again. `host` is in lower case; `rest` is the path
    /// behind the group's prefix, `query` as received.
    pub fn write_key(&self, host: &str, rest: &[u8], query: Option<&[u8]>, key: &mut Vec<u8>) {
        key.clear();
        if self.with_host {
            key.extend_from_slice(host.as_bytes());
            key.push(b'/');
        }
        match (&self.query, query) {
            (_, None) => self.template.write_key(rest, None, key),
            (QueryRule::Keep, query) => self.template.write_key(rest, query, key),
            (rule, query) => self.template.write_key(rest, rule.apply(query).as_deref(), key),
        }
    }

    /// The key of an origin target in origin form, as a request would make it: what [`KeyRule::target_of`] leads back from.
    /// `None` where no key leads there.
    pub fn key_of(&self, host: &str, target: &str) -> Option<Bytes> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.as_bytes())),
            None => (target, None),
        };
        let mut key = Vec::new();
        self.write_key(host, path.strip_prefix('/')?.as_bytes(), query, &mut key);
        self.target_of(&key)?;
        Some(key.into())
    }

    /// A key as somebody wrote it, with its query as requests have it here.
    pub fn by_query_rule(&self, key: &[u8]) -> Bytes {
        match key.iter().position(|&byte| byte == b'?') {
            Some(at) if self.query != QueryRule::Keep => {
                let mut kept = key[..at].to_vec();
                if let Some(query) = self.query.apply(Some(&key[at + 1..])) {
                    kept.push(b'?');
                    kept.extend_from_slice(&query);
                }
                kept.into()
            }
            _ => Bytes::copy_from_slice(key),
        }
    }

    /// `Host` (only where it belongs to the key) and origin target of a key; `None` when no target has this key.
    pub fn target_of(&self, key: &[u8]) -> Option<(Option<Bytes>, Bytes)> {
        let (host, rest) = match self.with_host {
            true => {
                let slash = memchr::memchr(b'/', key)?;
                Authority::parse(&key[..slash]).ok()?;
                (Some(Bytes::copy_from_slice(&key[..slash])), &key[slash + 1..])
            }
            false => (None, key),
        };
        let (path, query) = self.template.split(rest).ok()?;
        Some((host, origin_target("", path, query).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_back_to_the_target_that_made_it() {
        for (template, with_host, expected) in [
            ("{rest}", false, "a/b.jpg?w=1"),
            ("/{rest}", false, "/a/b.jpg?w=1"),
            ("p:{rest}", true, "h:81/p:a/b.jpg?w=1"),
        ] {
            let template = KeyTemplate::parse(template).unwrap();
            let rule = KeyRule { template, query: QueryRule::Keep, with_host };
            let mut key = Vec::new();
            rule.write_key("h:81", b"a/b.jpg", Some(b"w=1"), &mut key);
            assert_eq!(key, expected.as_bytes());
            let (host, target) = rule.target_of(&key).unwrap();
            assert_eq!((host.as_deref(), &target[..]), (with_host.then_some(&b"h:81"[..]), &b"/a/b.jpg?w=1"[..]));
            assert_eq!(rule.key_of("h:81", "/a/b.jpg?w=1").as_deref(), Some(&key[..]));
        }
    }

    #[test]
    fn keys_of_others_lead_nowhere() {
        let rule = KeyRule { with_host: true, ..KeyRule::default() };
        assert_eq!(rule.key_of("h", "no-slash"), None);
        for key in ["no-slash", "/empty", "us er@h/a", "h/../a", "h/a b"] {
            assert_eq!(rule.target_of(key.as_bytes()), None, "{key}");
        }
    }
}
