//! Several responses under one key, as the entry carries them that stands for all.

use std::sync::atomic::{AtomicU32, Ordering};

use super::Entry;
use crate::fields::Fields;
use crate::memory::allocated_bytes;
use crate::semantics::variant::{VariantKey, VaryRule};

/// Responses that are told apart by the request fields which `rule` names; at least one.
#[derive(Debug)]
pub(crate) struct Variants {
    rule: VaryRule,
    variants: Box<[Variant]>,
}

/// One of them, and how often it was chosen.
#[derive(Debug)]
pub(crate) struct Variant {
    pub key: VariantKey,
    pub entry: Entry,
    pub uses: AtomicU32,
}

impl Variants {
    /// `None` without a variant.
    pub fn new(rule: VaryRule, variants: Vec<Variant>) -> Option<Self> {
        (!variants.is_empty()).then(|| Variants { rule, variants: variants.into() })
    }

    pub fn rule(&self) -> &VaryRule {
        &self.rule
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Variant> {
        self.variants.iter()
    }

    pub fn first(&self) -> &Entry {
        &self.variants[0].entry
    }

    /// The variant for a request, and counts the use.
    pub fn select(&self, forwarded: impl FnOnce() -> Fields) -> Option<&Entry> {
        let wanted = self.rule.variant_key(&forwarded())?;
        let variant = self.iter().find(|variant| variant.key == wanted)?;
        variant.uses.fetch_add(1, Ordering::Relaxed);
        Some(&variant.entry)
    }

    /// What they take in a block of their own, beside their entries, as the allocator gives it.
    pub fn charged_bytes(&self) -> usize {
        let names = self.rule.names();
        allocated_bytes(size_of::<Variants>())
            + allocated_bytes(size_of_val(&*self.variants))
            + self.iter().map(|variant| allocated_bytes(variant.key.as_bytes().len())).sum::<usize>()
            + allocated_bytes(size_of_val(names))
            + names.iter().map(|name| allocated_bytes(name.len())).sum::<usize>()
    }
}

impl Variant {
    pub fn again(&self) -> Variant {
        Variant {
            key: self.key.clone(),
            entry: self.entry.clone(),
            uses: AtomicU32::new(self.uses.load(Ordering::Relaxed)),
        }
    }
}
