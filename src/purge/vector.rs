//! Positions of purges, and what is known of all of them.

use std::sync::Arc;

/// Names one purge: which life of which node accepted it, and the how-manieth of that life it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The random number of the node's life.
    pub incarnation: u64,
    /// Counts from one.
    pub sequence: u64,
}

/// Up to which purge of every life everything is known. Cheap to copy; most of the time empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Vector(Option<Arc<[Position]>>);

impl Vector {
    /// A vector of these positions; of several of one life the last counts.
    pub fn new(positions: impl IntoIterator<Item = Position>) -> Self {
        let mut positions: Vec<Position> = positions.into_iter().filter(|position| position.sequence > 0).collect();
        positions.sort_unstable();
        positions.dedup_by(|later, kept| {
            let same = later.incarnation == kept.incarnation;
            if same {
                kept.sequence = later.sequence;
            }
            same
        });
        Vector((!positions.is_empty()).then(|| positions.into()))
    }

    /// The positions, by life.
    pub fn positions(&self) -> &[Position] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Up to which number the life is known; zero for none.
    pub fn of(&self, incarnation: u64) -> u64 {
        let positions = self.positions();
        match positions.binary_search_by_key(&incarnation, |position| position.incarnation) {
            Ok(at) => positions[at].sequence,
            Err(_) => 0,
        }
    }

    /// Whether the purge is known.
    pub fn contains(&self, position: Position) -> bool {
        self.of(position.incarnation) >= position.sequence
    }

    /// Whether everything in `other` is known.
    pub fn contains_all(&self, other: &Vector) -> bool {
        match (&self.0, &other.0) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(own), Some(others)) => {
                Arc::ptr_eq(own, others) || others.iter().all(|position| self.contains(*position))
            }
        }
    }

    /// What is known of either.
    pub fn with(&self, others: &[Position]) -> Vector {
        match others.iter().all(|position| self.contains(*position)) {
            true => self.clone(),
            false => Vector::new(self.positions().iter().chain(others).copied()),
        }
    }

    /// What is known of lives that `keep` names.
    pub fn only(&self, mut keep: impl FnMut(u64) -> bool) -> Vector {
        Vector::new(self.positions().iter().copied().filter(|position| keep(position.incarnation)))
    }
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let positions = self.positions().iter().map(|position| (position.incarnation, position.sequence));
        formatter.debug_map().entries(positions).finish()
    }
}

/// Before which purges a piece of data was certainly not fetched: all that it contains had been recorded when the question to
/// the origin was sent (or, for what memory gave, were applied when it was looked up).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// How many purges of its log this node had recorded then; zero where the data came over the hop.
    pub arrival: u64,
    /// The purges contained.
    pub vector: Vector,
}

impl Stamp {
    /// The stamp of what another node sent.
    pub fn of_hop(vector: Vector) -> Self {
        Stamp { arrival: 0, vector }
    }
}
