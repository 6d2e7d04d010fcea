//! What the store holds under one key: every variant of its response, so that they live, weigh and go together.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::entry::{Entry, Variant, Variants};
use crate::fields::Fields;
use crate::semantics::variant::{VariantKey, VaryRule};
use crate::store::{HANDLES, Stored, Weighed};

/// The variants stored under one key; clones are the same slot. Immutable but for the use counts; who adds a variant makes
/// another slot.
///
/// The usual response does not vary: then nothing is kept beside its entry. Otherwise an entry that nobody else sees carries
/// the variants, so that a slot is one pointer.
#[derive(Clone, Debug)]
pub struct Slot(Entry);

impl Slot {
    /// The entry for a request, whose forwarded fields are made only when the response varies.
    #[inline]
    pub fn select(&self, forwarded: impl FnOnce() -> Fields) -> Option<&Entry> {
        match self.0.variants() {
            None => Some(&self.0),
            Some(kept) => kept.select(forwarded),
        }
    }

    /// The entry stored under this rule and variant.
    pub fn get(&self, rule: &VaryRule, key: &VariantKey) -> Option<&Entry> {
        match self.0.variants() {
            None => is_only(rule, key).then_some(&self.0),
            Some(kept) => {
                let variant = kept.iter().find(|variant| variant.key == *key)?;
                (kept.rule() == rule).then_some(&variant.entry)
            }
        }
    }

    /// How the response last stored under this key varies.
    pub fn rule(&self) -> &VaryRule {
        static NONE: VaryRule = VaryRule::None;
        self.0.variants().map_or(&NONE, Variants::rule)
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let many = self.0.variants();
        let one = many.is_none().then_some(&self.0);
        one.into_iter().chain(many.into_iter().flat_map(Variants::iter).map(|variant| &variant.entry))
    }

    /// A slot with `entry` in the place of its variant. Variants stored under another rule are dropped: what they vary on is
    /// no longer what the origin says. Beyond `variants_max` the least used goes.
    pub fn with(stored: Option<&Slot>, rule: VaryRule, key: VariantKey, entry: Entry, variants_max: usize) -> Slot {
        if is_only(&rule, &key) {
            return Slot(entry);
        }
        let stored = stored.and_then(|slot| slot.0.variants()).filter(|kept| *kept.rule() == rule);
        let stays = stored.into_iter().flat_map(Variants::iter).filter(|variant| variant.key != key);
        let mut kept: Vec<Variant> = stays.map(Variant::again).collect();
        while kept.len() >= variants_max.max(1) {
            let least_used = (0..kept.len()).min_by_key(|&index| kept[index].uses.load(Ordering::Relaxed));
            kept.swap_remove(least_used.unwrap_or_default());
        }
        // Halving lets a variant that was popular long ago become the least used.
        kept.iter().for_each(|variant| variant.uses.store(variant.uses.load(Ordering::Relaxed) / 2, Ordering::Relaxed));
        kept.push(Variant { key, entry: entry.clone(), uses: AtomicU32::new(1) });
        Slot::of_variants(rule, kept).unwrap_or(Slot(entry))
    }

    /// A slot in which every entry for which `replace` gives another has that in its place.
    pub fn with_each(&self, mut replace: impl FnMut(&Entry) -> Option<Entry>) -> Slot {
        let mut other = |entry: &Entry| replace(entry).unwrap_or_else(|| entry.clone());
        match self.0.variants() {
            None => Slot(other(&self.0)),
            Some(kept) => {
                let again = kept.iter().map(|variant| Variant { entry: other(&variant.entry), ..variant.again() });
                Slot::of_variants(kept.rule().clone(), again.collect()).unwrap_or_else(|| self.clone())
            }
        }
    }

    /// A slot without `entry`, or `None` when nothing is left.
    pub fn without(&self, entry: &Entry) -> Option<Slot> {
        self.without_each(|other| other.is_same(entry))
    }

    /// A slot without all entries that `goes` names, or `None` when nothing is left.
    pub fn without_each(&self, goes: impl Fn(&Entry) -> bool) -> Option<Slot> {
        match self.0.variants() {
            None => (!goes(&self.0)).then(|| self.clone()),
            Some(kept) => {
                let stays = kept.iter().filter(|variant| !goes(&variant.entry));
                Slot::of_variants(kept.rule().clone(), stays.map(Variant::again).collect())
            }
        }
    }

    fn of_variants(rule: VaryRule, variants: Vec<Variant>) -> Option<Slot> {
        Variants::new(rule, variants).map(|variants| Slot(Entry::of_variants(variants)))
    }
}

/// Whether it is the key of a response that does not vary: the only one under its rule.
fn is_only(rule: &VaryRule, key: &VariantKey) -> bool {
    *rule == VaryRule::None && key.is_empty()
}

impl Weighed for Slot {
    fn key(&self) -> &[u8] {
        self.0.key()
    }

    fn charged_bytes(&self) -> usize {
        let carrier = self.0.variants().map_or(0, |_| self.0.charged_bytes());
        carrier + self.entries().map(|entry| entry.charged_bytes()).sum::<usize>()
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
        self.0.is_same(&other.0)
    }

    fn is_pinned(&self) -> bool {
        let by_others = |kept: &Variants| kept.iter().any(|variant| variant.entry.holders() > 1);
        self.0.holders() > HANDLES || self.0.variants().is_some_and(by_others)
    }
}

const _: () = assert!(size_of::<Slot>() == 8, "the bookkeeping per entry grew");
