//! What the store holds under one key: every variant of its response, so that they live, weigh and go together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::entry::Entry;
use crate::fields::Fields;
use crate::memory::{Charge, allocated_bytes};
use crate::semantics::variant::{VariantKey, VaryRule};
use crate::store::{Stored, Weighed};

/// The variants stored under one key; clones are the same slot. Immutable but for the use counts; who adds a variant makes
/// another slot.
#[derive(Clone, Debug)]
pub struct Slot(Kept);

#[derive(Clone, Debug)]
enum Kept {
    /// The usual response, which does not vary: nothing is kept beside it.
    One(Entry),
    Many(Arc<Variants>),
}

#[derive(Debug)]
struct Variants {
    rule: VaryRule,
    variants: Box<[Variant]>,
    /// For this block; the entries have their own.
    charge: Charge,
}

#[derive(Debug)]
struct Variant {
    key: VariantKey,
    entry: Entry,
    uses: AtomicU32,
}

impl Slot {
    /// The entry for a request, whose forwarded fields are made only when the response varies.
    #[inline]
    pub fn select(&self, forwarded: impl FnOnce() -> Fields) -> Option<&Entry> {
        match &self.0 {
            Kept::One(entry) => Some(entry),
            Kept::Many(kept) => kept.select(forwarded),
        }
    }

    /// The entry stored under this rule and variant.
    pub fn get(&self, rule: &VaryRule, key: &VariantKey) -> Option<&Entry> {
        match &self.0 {
            Kept::One(entry) => is_only(rule, key).then_some(entry),
            Kept::Many(kept) => {
                let variant = kept.variants.iter().find(|variant| variant.key == *key)?;
                (kept.rule == *rule).then_some(&variant.entry)
            }
        }
    }

    /// How the response last stored under this key varies.
    pub fn rule(&self) -> &VaryRule {
        static NONE: VaryRule = VaryRule::None;
        match &self.0 {
            Kept::One(_) => &NONE,
            Kept::Many(kept) => &kept.rule,
        }
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let (one, many) = match &self.0 {
            Kept::One(entry) => (Some(entry), &[][..]),
            Kept::Many(kept) => (None, &*kept.variants),
        };
        one.into_iter().chain(many.iter().map(|variant| &variant.entry))
    }

    /// A slot with `entry` in the place of its variant. Variants stored under another rule are dropped: what they vary on is
    /// no longer what the origin says. Beyond `variants_max` the least used goes.
    pub fn with(stored: Option<&Slot>, rule: VaryRule, key: VariantKey, entry: Entry, variants_max: usize) -> Slot {
        if is_only(&rule, &key) {
            return Slot(Kept::One(entry));
        }
        let stored = match stored {
            Some(Slot(Kept::Many(kept))) if kept.rule == rule => &*kept.variants,
            _ => &[],
        };
        let mut kept: Vec<Variant> =
            stored.iter().filter(|variant| variant.key != key).map(|variant| variant.again()).collect();
        while kept.len() >= variants_max.max(1) {
            let least_used = (0..kept.len()).min_by_key(|&index| kept[index].uses.load(Ordering::Relaxed));
            kept.swap_remove(least_used.unwrap_or_default());
        }
        // Halving lets a variant that was popular long ago become the least used.
        kept.iter().for_each(|variant| variant.uses.store(variant.uses.load(Ordering::Relaxed) / 2, Ordering::Relaxed));
        kept.push(Variant { key, entry, uses: AtomicU32::new(1) });
        Slot::of_variants(rule, kept)
    }

    /// A slot in which every entry for which `replace` gives another has that in its place.
    pub fn with_each(&self, mut replace: impl FnMut(&Entry) -> Option<Entry>) -> Slot {
        let mut other = |entry: &Entry| replace(entry).unwrap_or_else(|| entry.clone());
        match &self.0 {
            Kept::One(entry) => Slot(Kept::One(other(entry))),
            Kept::Many(kept) => {
                let again = kept.variants.iter();
                let again = again.map(|variant| Variant { entry: other(&variant.entry), ..variant.again() });
                Slot::of_variants(kept.rule.clone(), again.collect())
            }
        }
    }

    /// A slot without `entry`, or `None` when nothing is left.
    pub fn without(&self, entry: &Entry) -> Option<Slot> {
        self.without_each(|other| other.is_same(entry))
    }

    /// A slot without all entries that `goes` names, or `None` when nothing is left.
    pub fn without_each(&self, goes: impl Fn(&Entry) -> bool) -> Option<Slot> {
        match &self.0 {
            Kept::One(entry) => (!goes(entry)).then(|| self.clone()),
            Kept::Many(kept) => {
                let stays = kept.variants.iter().filter(|variant| !goes(&variant.entry));
                let stays: Vec<Variant> = stays.map(Variant::again).collect();
                (!stays.is_empty()).then(|| Slot::of_variants(kept.rule.clone(), stays))
            }
        }
    }

    /// There is at least one variant.
    fn of_variants(rule: VaryRule, variants: Vec<Variant>) -> Slot {
        let charge = variants[0].entry.another_charge(own_bytes(&rule, &variants));
        Slot(Kept::Many(Arc::new(Variants { rule, variants: variants.into(), charge })))
    }
}

/// Whether it is the key of a response that does not vary: the only one under its rule.
fn is_only(rule: &VaryRule, key: &VariantKey) -> bool {
    *rule == VaryRule::None && key.is_empty()
}

impl Variants {
    fn select(&self, forwarded: impl FnOnce() -> Fields) -> Option<&Entry> {
        let wanted = self.rule.variant_key(&forwarded())?;
        let variant = self.variants.iter().find(|variant| variant.key == wanted)?;
        variant.uses.fetch_add(1, Ordering::Relaxed);
        Some(&variant.entry)
    }
}

/// The two counts in front of what an `Arc` holds.
const ARC_BYTES: usize = 16;

/// What variants take beside their entries.
fn own_bytes(rule: &VaryRule, variants: &[Variant]) -> usize {
    allocated_bytes(ARC_BYTES + size_of::<Variants>())
        + allocated_bytes(size_of_val(variants))
        + variants.iter().map(|variant| allocated_bytes(variant.key.as_bytes().len())).sum::<usize>()
        + allocated_bytes(size_of_val(rule.names()))
        + rule.names().iter().map(|name| allocated_bytes(name.len())).sum::<usize>()
}

impl Variant {
    fn again(&self) -> Variant {
        Variant {
            key: self.key.clone(),
            entry: self.entry.clone(),
            uses: AtomicU32::new(self.uses.load(Ordering::Relaxed)),
        }
    }
}

impl Weighed for Slot {
    fn charged_bytes(&self) -> usize {
        let own = match &self.0 {
            Kept::One(_) => 0,
            Kept::Many(kept) => kept.charge.bytes(),
        };
        own + self.entries().map(|entry| entry.charged_bytes()).sum::<usize>()
    }

    fn is_negative(&self) -> bool {
        self.entries().all(|entry| matches!(entry.status, 400..))
    }

    fn for_each_tag(&self, give: &mut dyn FnMut(&[u8])) {
        self.entries().flat_map(|entry| entry.tags().iter()).for_each(give);
    }
}

impl Stored for Slot {
    fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kept::One(own), Kept::One(others)) => own.is_same(others),
            (Kept::Many(own), Kept::Many(others)) => Arc::ptr_eq(own, others),
            _ => false,
        }
    }

    fn is_pinned(&self) -> bool {
        let by_others = match &self.0 {
            Kept::One(_) => false,
            Kept::Many(kept) => Arc::strong_count(kept) > 1,
        };
        by_others || self.entries().any(|entry| entry.holders() > 1)
    }
}

const _: () = assert!(size_of::<Slot>() == 16, "the bookkeeping per entry grew");
