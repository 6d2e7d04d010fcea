//! What a purge is, and the book in which a node keeps purges: data without I/O; who applies it is [`crate::purging`].
//!
//! **The contract.** No request received by any node after the acknowledgement of a purge is answered with data whose origin
//! fetch began before the purge was received.
//!
//! 1. Any node accepts purges and numbers its own. A [`Position`] is (life of the node, number); a [`Vector`] says up to which
//!    number of each life everything is known.
//! 2. A node *records* a purge in its [`Log`] before it removes anything, and says that it has *applied* it after everything
//!    that matched is gone. Acknowledged means: applied on every member.
//! 3. What is fetched is marked with a [`Stamp`]: what was recorded here when the question to the origin was sent. What memory
//!    answers is marked with what was *applied* before the look: an entry that outlived these purges is not older than them.
//! 4. Nothing is stored that a purge matches which its stamp does not contain. The check and the storing are one step under
//!    the lock of the slot, and removal takes the same lock after recording; so either the check sees the purge, or the
//!    removal sees the entry.
//! 5. A request keeps what was applied when it came ([`Log::applied`]): every purge acknowledged before is in it. It may have
//!    whatever no *such* purge matches; what came later may overtake it, because nothing was acknowledged when it asked.
//! 6. Over the hop the stamp travels with the head. When the owner's stamp lacks a purge that this node had when it asked,
//!    the flight closes and asks once more, while the owner is told. If the second answer lacks it too, this node loads
//!    itself: whoever accepted the purge may not count the owner as a member, and then waited for this node alone.
//! 7. A fleet may let a majority decide instead of every member ([`lease`]).
//! 8. The log is bounded in time, number and bytes. What it drops is remembered as a vector: who lacks that starts empty.

pub mod lease;
mod log;
mod tags;
mod vector;

use std::sync::Arc;

use bytes::Bytes;

use self::lease::{LeaseAnswer, LeaseQuestion};

pub use self::log::{Batch, Lacking, Log, Overtaking, RECORDS_MAX};
pub use self::tags::Tags;
pub use self::vector::{Position, Stamp, Vector};

/// What a purge is about. Groups go by their names, which all nodes share.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Everything in every group.
    Everything,
    /// Everything in a group.
    Group(Arc<str>),
    /// One key, all its variants.
    Key(Arc<str>, Bytes),
    /// All keys of a group that begin with these bytes.
    Prefix(Arc<str>, Bytes),
    /// The key itself, and the key with any query.
    Path(Arc<str>, Bytes),
    /// Whatever has the tag, in one group or in all.
    Tag(Option<Arc<str>>, Bytes),
}

impl Target {
    /// As every node can be told it: a key, path or prefix that is too long becomes the prefix that it begins with, which
    /// matches more. `None`: a tag that is longer than those that are kept (`TAGS_BYTES_MAX`), so that nothing has it, or a name that
    /// no group has.
    pub fn tellable(self) -> Option<Self> {
        let is_name = |name: &str| {
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !name.is_empty() && name.len() <= GROUP_BYTES_MAX && name.bytes().all(is_allowed)
        };
        if self.group().is_some_and(|name| !is_name(name)) {
            return None;
        }
        match self {
            Target::Key(group, text) | Target::Prefix(group, text) | Target::Path(group, text)
                if text.len() > VALUE_BYTES_MAX =>
            {
                Some(Target::Prefix(group, text.slice(..VALUE_BYTES_MAX)))
            }
            Target::Tag(_, tag) if tag.len() > VALUE_BYTES_MAX => None,
            target => Some(target),
        }
    }

    /// Whether it is about what has this key and these tags.
    pub fn matches(&self, group: &str, key: &[u8], tags: &Tags) -> bool {
        match self {
            Target::Everything => true,
            Target::Group(name) => **name == *group,
            Target::Key(name, wanted) => *wanted == key && **name == *group,
            Target::Prefix(name, prefix) => key.starts_with(prefix) && **name == *group,
            Target::Path(name, path) => is_on_path(key, path) && **name == *group,
            Target::Tag(name, tag) => name.as_ref().is_none_or(|name| **name == *group) && tags.may_have(tag),
        }
    }

    /// As [`Target::matches`] while nothing is known of tags: whether the key alone decides.
    pub fn matches_key(&self, group: &str, key: &[u8]) -> bool {
        !matches!(self, Target::Tag(..)) && self.matches(group, key, &Tags::default())
    }

    /// The group that it is confined to.
    pub fn group(&self) -> Option<&Arc<str>> {
        match self {
            Target::Everything => None,
            Target::Tag(group, _) => group.as_ref(),
            Target::Group(group) | Target::Key(group, _) | Target::Prefix(group, _) | Target::Path(group, _) => {
                Some(group)
            }
        }
    }

    /// Key, prefix, path or tag; empty where there is none.
    pub fn value(&self) -> &[u8] {
        match self {
            Target::Everything | Target::Group(_) => &[],
            Target::Key(_, value) | Target::Prefix(_, value) | Target::Path(_, value) | Target::Tag(_, value) => value,
        }
    }
}

/// Whether `key` is the path, with or without a query.
pub fn is_on_path(key: &[u8], path: &[u8]) -> bool {
    key.strip_prefix(path).is_some_and(|rest| matches!(rest.first(), None | Some(b'?')))
}

/// One purge as it travels: all targets of one request under one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which purge of which node.
    pub position: Position,
    /// Whether what matches only becomes stale.
    pub soft: bool,
    /// What it is about.
    pub targets: Vec<Arc<Target>>,
}

/// How far a life's purges are known, and how long ago the last one came: who is told forgets lives when the teller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The last purge of that life.
    pub position: Position,
    /// Seconds since it was recorded.
    pub age_seconds: u32,
}

/// Purges from one node to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// The records are to be counted and not applied.
    pub dry_run: bool,
    /// What the sender knows; where given, the answer tells what it lacks.
    pub known: Option<Vector>,
    /// Who knows less than this cannot use the records.
    pub base: Vector,
    /// Purges in the order in which they are to be recorded.
    pub records: Vec<Record>,
    /// After the records, everything up to here is known.
    pub claims: Vec<Claim>,
    /// The sender wants a lease.
    pub lease: Option<LeaseQuestion>,
}

/// What the receiver of a [`Notice`] answers, once everything in it is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// False when the base was not known: nothing was recorded.
    pub understood: bool,
    /// What has been applied.
    pub applied: Vector,
    /// Entries that went (or would go), by purge of the notice.
    pub entries: Vec<(Position, u64)>,
    /// What the asker lacks.
    pub missing: Option<Box<Notice>>,
    /// Whether the asker may count on a lease; `None` where none was asked for, or none are kept.
    pub lease: Option<LeaseAnswer>,
}

/// Targets in records that fit into what peers send one another; at least one record.
pub fn in_records(targets: impl IntoIterator<Item = Target>) -> Vec<Vec<Arc<Target>>> {
    let (mut records, mut bytes) = (vec![Vec::new()], 0);
    for target in targets.into_iter().filter_map(Target::tellable) {
        let target_bytes = TARGET_BYTES_EXTRA + target.group().map_or(0, |name| name.len()) + target.value().len();
        if bytes + target_bytes > RECORD_BYTES_MAX && bytes > 0 {
            records.push(Vec::new());
            bytes = 0;
        }
        bytes += target_bytes;
        if let Some(record) = records.last_mut() {
            record.push(Arc::new(target));
        }
    }
    records
}

/// The longest name of a group.
pub const GROUP_BYTES_MAX: usize = 128;
/// The longest key, prefix, path or tag that a purge names.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;
/// The targets of one record together; a frame between peers has room for it and for what goes before it.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// What a target takes beside its texts.
const TARGET_BYTES_EXTRA: usize = 16;

#[cfg(test)]
mod tests;
