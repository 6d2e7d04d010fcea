//! What the store holds under one key: every variant of its response, so that they live, weigh and go together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::entry::Entry;
use crate::fields::Fields;
use crate::memory::{Charge, allocated_bytes};
use crate::semantics::variant::{VariantKey, VaryRule};
use crate::store::Stored;

/// The variants stored under one key. Immutable but for the use counts; who adds a variant makes another slot.
#[derive(Debug)]
pub struct Slot {
    rule: VaryRule,
    variants: Box<[Variant]>,
    /// For the slot itself; the entries have their own.
    charge: Charge,
}

#[derive(Debug)]
struct Variant {
    key: VariantKey,
    entry: Arc<Entry>,
    uses: AtomicU32,
}

impl Slot {
    /// The entry for a request, whose forwarded fields are made only when the response varies.
    pub fn select(&self, forwarded: impl FnOnce() -> Fields) -> Option<&Arc<Entry>> {
        if let (VaryRule::None, [only]) = (&self.rule, &*self.variants) {
            return Some(&only.entry);
        }
        let wanted = self.rule.variant_key(&forwarded())?;
        let variant = self.variants.iter().find(|variant| variant.key == wanted)?;
        variant.uses.fetch_add(1, Ordering::Relaxed);
        Some(&variant.entry)
    }

    /// The entry stored under this rule and variant.
    pub fn get(&self, rule: &VaryRule, key: &VariantKey) -> Option<&Arc<Entry>> {
        let variant = self.variants.iter().find(|variant| variant.key == *key)?;
        (self.rule == *rule).then_some(&variant.entry)
    }

    /// How the response last stored under this key varies.
    pub fn rule(&self) -> &VaryRule {
        &self.rule
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.variants.iter().map(|variant| &variant.entry)
    }

    /// A slot with `entry` in the place of its variant. Variants stored under another rule are dropped: what they vary on is
    /// no longer what the origin says. Beyond `variants_max` the least used goes.
    pub fn with(
        stored: Option<&Slot>,
        rule: VaryRule,
        key: VariantKey,
        entry: Arc<Entry>,
        variants_max: usize,
    ) -> Slot {
        let mut kept: Vec<Variant> = stored
            .filter(|slot| slot.rule == rule)
            .map(|slot| slot.variants.iter().filter(|variant| variant.key != key).map(Variant::again).collect())
            .unwrap_or_default();
        while kept.len() >= variants_max.max(1) {
            let least_used = (0..kept.len()).min_by_key(|&index| kept[index].uses.load(Ordering::Relaxed));
            kept.swap_remove(least_used.unwrap_or_default());
        }
        // Halving lets a variant that was popular long ago become the least used.
        kept.iter().for_each(|variant| variant.uses.store(variant.uses.load(Ordering::Relaxed) / 2, Ordering::Relaxed));
        let charge = entry.charge.another(own_bytes(&rule, kept.len() + 1));
        kept.push(Variant { key, entry, uses: AtomicU32::new(1) });
        Slot { rule, variants: kept.into(), charge }
    }

    /// A slot in which every entry for which `replace` gives another has that in its place.
    pub fn with_each(&self, mut replace: impl FnMut(&Arc<Entry>) -> Option<Arc<Entry>>) -> Slot {
        let again = self.variants.iter().map(|variant| {
            let entry = replace(&variant.entry).unwrap_or_else(|| variant.entry.clone());
            Variant { entry, ..variant.again() }
        });
        let charge = self.charge.another(own_bytes(&self.rule, self.variants.len()));
        Slot { rule: self.rule.clone(), variants: again.collect(), charge }
    }

    /// A slot without `entry`, or `None` when nothing is left.
    pub fn without(&self, entry: &Arc<Entry>) -> Option<Slot> {
        self.without_each(|other| Arc::ptr_eq(other, entry))
    }

    /// A slot without all entries that `goes` names, or `None` when nothing is left.
    pub fn without_each(&self, goes: impl Fn(&Arc<Entry>) -> bool) -> Option<Slot> {
        let kept: Box<[Variant]> =
            self.variants.iter().filter(|variant| !goes(&variant.entry)).map(Variant::again).collect();
        let charge = self.charge.another(own_bytes(&self.rule, kept.len()));
        (!kept.is_empty()).then(|| Slot { rule: self.rule.clone(), variants: kept, charge })
    }
}

/// What a slot takes beside its entries.
fn own_bytes(rule: &VaryRule, variants: usize) -> usize {
    allocated_bytes(crate::entry::ARC_BYTES + size_of::<Slot>())
        + allocated_bytes(variants * size_of::<Variant>())
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

impl Stored for Slot {
    fn charged_bytes(&self) -> usize {
        self.charge.bytes() + self.variants.iter().map(|variant| variant.entry.charge.bytes()).sum::<usize>()
    }

    fn is_negative(&self) -> bool {
        self.variants.iter().all(|variant| matches!(variant.entry.status, 400..))
    }

    fn for_each_tag(&self, give: &mut dyn FnMut(&[u8])) {
        self.entries().flat_map(|entry| entry.tags.iter()).for_each(give);
    }

    fn is_pinned(this: &Arc<Self>) -> bool {
        Arc::strong_count(this) > 1 || this.variants.iter().any(|variant| Arc::strong_count(&variant.entry) > 1)
    }
}
