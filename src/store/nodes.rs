//! Places of entries in the order of eviction: a dense slab of nodes that doubly linked lists run through.

use crate::memory::allocated_bytes;

/// Number of a node; changes when another node is removed, see [`Nodes::swap_remove`].
pub(super) type NodeId = u32;

/// No node: the end of a list.
pub(super) const NONE: NodeId = NodeId::MAX;

/// One entry's place. It does not know the entry: the hash finds it in the index.
#[derive(Debug)]
pub(super) struct Node {
    /// The upper half of the key's hash: enough to find the entry among the few that share it.
    pub hash: u32,
    /// Towards the head, which is the youngest.
    pub previous: NodeId,
    pub next: NodeId,
    /// The list that the node is in.
    pub queue: u32,
    /// When the node came to the head of its list, in coarse steps of the order's own count.
    pub tick: u32,
}

/// All nodes, without gaps, so that a phase of few large entries does not pay for an earlier one of many small ones.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    chunks: Vec<Vec<Node>>,
}

impl Nodes {
    pub fn len(&self) -> usize {
        match self.chunks.split_last() {
            Some((last, full)) => full.len() * CHUNK_NODES + last.len(),
            None => 0,
        }
    }

    /// Whether no further node can be numbered.
    pub fn is_full(&self) -> bool {
        self.len() >= NONE as usize
    }

    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.chunks.get(id as usize / CHUNK_NODES)?.get(id as usize % CHUNK_NODES)
    }

    pub fn at(&self, id: NodeId) -> &Node {
        &self.chunks[id as usize / CHUNK_NODES][id as usize % CHUNK_NODES]
    }

    pub fn at_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.chunks[id as usize / CHUNK_NODES][id as usize % CHUNK_NODES]
    }

    pub fn push(&mut self, node: Node) -> NodeId {
        let id = self.len() as NodeId;
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK_NODES => last.push(node),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK_NODES);
                chunk.push(node);
                self.chunks.push(chunk);
            }
        }
        id
    }

    /// Takes a node out; the last node gets its number. The caller mends what pointed to the last node.
    pub fn swap_remove(&mut self, id: NodeId) -> Node {
        let last = self.chunks.last_mut().and_then(Vec::pop).expect("a node is removed that is not there");
        if self.chunks.last().is_some_and(Vec::is_empty) {
            self.chunks.pop();
        }
        if id as usize == self.len() { last } else { std::mem::replace(self.at_mut(id), last) }
    }

    /// What the slab takes of memory, in bytes.
    pub fn allocated(&self) -> usize {
        self.chunks.len() * allocated_bytes(CHUNK_NODES * size_of::<Node>())
            + allocated_bytes(self.chunks.capacity() * size_of::<Vec<Node>>())
    }
}

/// A list from its youngest node (head) to the one that gives way next (tail), with the bytes of its entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub head: NodeId,
    pub tail: NodeId,
    pub items: usize,
    pub bytes: usize,
}

impl List {
    pub const EMPTY: List = List { head: NONE, tail: NONE, items: 0, bytes: 0 };

    pub fn push_head(&mut self, nodes: &mut Nodes, id: NodeId, bytes: usize) {
        let node = nodes.at_mut(id);
        node.previous = NONE;
        node.next = self.head;
        match self.head {
            NONE => self.tail = id,
            head => nodes.at_mut(head).previous = id,
        }
        self.head = id;
        self.items += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub fn unlink(&mut self, nodes: &mut Nodes, id: NodeId, bytes: usize) {
        let Node { previous, next, .. } = *nodes.at(id);
        match previous {
            NONE => self.head = next,
            previous => nodes.at_mut(previous).next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => nodes.at_mut(next).previous = previous,
        }
        debug_assert!(self.items > 0 && self.bytes >= bytes);
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Mends the list after its node `id` took over the place of a removed one: neighbours and ends learn the number.
    pub fn renumber(&mut self, nodes: &mut Nodes, id: NodeId) {
        let Node { previous, next, .. } = *nodes.at(id);
        match previous {
            NONE => self.head = id,
            previous => nodes.at_mut(previous).next = id,
        }
        match next {
            NONE => self.tail = id,
            next => nodes.at_mut(next).previous = id,
        }
    }
}

/// Nodes per block of the slab: 20 KiB, a size class of its own, so that growing never copies. Guess.
const CHUNK_NODES: usize = 1024;

const _: () = assert!(size_of::<Node>() == 20, "the bookkeeping per entry grew");
