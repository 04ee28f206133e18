//! Names of the objects of the core, and the slab that gives them out.
//!
//! An id is an index into a slab and the generation of that slot: indexes are dense, small and used again, generations
//! tell a new object from the one that was there before, so that a late message about a gone object finds nothing.

use std::marker::PhantomData;

/// The worker thread a client or server lives on.
pub type WorkerId = u16;

/// What a typed id needs to be for [`Slab`].
pub trait Id: Copy {
    fn new(index: u32, generation: u32) -> Self;
    fn index(self) -> u32;
    fn generation(self) -> u32;
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, PartialOrd, Ord)]
        pub struct $name {
            pub index: u32,
            pub generation: u32,
        }

        impl Id for $name {
            fn new(index: u32, generation: u32) -> Self {
                Self { index, generation }
            }
            fn index(self) -> u32 {
                self.index
            }
            fn generation(self) -> u32 {
                self.generation
            }
        }
    };
}

id!(
    /// A database entry.
    DbId
);
id!(
    /// A pool: one entry and one pool user.
    PoolId
);
id!(
    /// A server connection, from its launch to its end.
    ServerId
);
id!(
    /// A client in the queue of a pool; see `Pools::collect`.
    Ticket
);
id!(
    /// A cancel request that a pool forwards.
    CancelId
);

/// A user object; these are never dropped.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, PartialOrd, Ord)]
pub struct UserId(pub u32);

/// A client as its worker knows it; the pool only hands it back.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, PartialOrd, Ord)]
pub struct ClientRef {
    pub worker: WorkerId,
    pub index: u32,
    pub generation: u32,
}

/// Objects by id; slots are used again, last freed first.
#[derive(Debug)]
pub struct Slab<I, T> {
    slots: Vec<Slot<T>>,
    free: Option<u32>,
    len: usize,
    ids: PhantomData<fn() -> I>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

#[derive(Debug)]
enum Content<T> {
    Used(T),
    /// The next free slot.
    Free(Option<u32>),
}

impl<I, T> Default for Slab<I, T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: None, len: 0, ids: PhantomData }
    }
}

impl<I: Id, T> Slab<I, T> {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One more than the largest index ever used.
    #[must_use]
    pub fn capacity_used(&self) -> usize {
        self.slots.len()
    }

    pub fn insert(&mut self, value: T) -> I {
        self.len += 1;
        if let Some(index) = self.free {
            let slot = &mut self.slots[index as usize];
            if let Content::Free(next) = slot.content {
                self.free = next;
            }
            slot.content = Content::Used(value);
            return I::new(index, slot.generation);
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 objects of a kind fit into memory");
        self.slots.push(Slot { generation: 0, content: Content::Used(value) });
        I::new(index, 0)
    }

    pub fn remove(&mut self, id: I) -> Option<T> {
        let slot = self.slots.get_mut(id.index() as usize)?;
        if slot.generation != id.generation() || matches!(slot.content, Content::Free(_)) {
            return None;
        }
        slot.generation = slot.generation.wrapping_add(1);
        let content = std::mem::replace(&mut slot.content, Content::Free(self.free));
        self.free = Some(id.index());
        self.len -= 1;
        match content {
            Content::Used(value) => Some(value),
            Content::Free(_) => None,
        }
    }

    #[must_use]
    pub fn get(&self, id: I) -> Option<&T> {
        match self.slots.get(id.index() as usize) {
            Some(Slot { generation, content: Content::Used(value) }) if *generation == id.generation() => Some(value),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        match self.slots.get_mut(id.index() as usize) {
            Some(Slot { generation, content: Content::Used(value) }) if *generation == id.generation() => Some(value),
            _ => None,
        }
    }

    #[must_use]
    pub fn contains(&self, id: I) -> bool {
        self.get(id).is_some()
    }

    /// The id of whatever is at `index` now.
    #[must_use]
    pub fn id_at(&self, index: u32) -> Option<I> {
        match self.slots.get(index as usize) {
            Some(Slot { generation, content: Content::Used(_) }) => Some(I::new(index, *generation)),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| match &slot.content {
            Content::Used(value) => Some((I::new(index, slot.generation), value)),
            Content::Free(_) => None,
        })
    }
}

/// The object of an id whose existence is an invariant of the caller.
impl<I: Id, T> std::ops::Index<I> for Slab<I, T> {
    type Output = T;
    fn index(&self, id: I) -> &T {
        self.get(id).expect("the caller holds the id of an object that exists")
    }
}

impl<I: Id, T> std::ops::IndexMut<I> for Slab<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        self.get_mut(id).expect("the caller holds the id of an object that exists")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_is_used_again_with_another_generation() {
        let mut slab: Slab<ServerId, &str> = Slab::new();
        let first = slab.insert("first");
        let second = slab.insert("second");
        assert_eq!(slab.remove(first), Some("first"));
        assert_eq!(slab.remove(first), None);
        let third = slab.insert("third");
        assert_eq!(third.index, first.index);
        assert_ne!(third, first);
        assert_eq!((slab.get(first), slab.get(third), slab.get(second)), (None, Some(&"third"), Some(&"second")));
        assert_eq!(slab.len(), 2);
    }

    #[test]
    fn an_unknown_id_finds_nothing() {
        let slab: Slab<ServerId, u8> = Slab::new();
        assert!(!slab.contains(ServerId { index: 7, generation: 0 }));
        assert_eq!(slab.id_at(0), None);
    }
}
