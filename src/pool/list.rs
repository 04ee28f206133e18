//! Doubly linked lists through the objects of a slab: any member leaves in constant time, and nothing is allocated.

use crate::id::{Id, Slab};

#[derive(Copy, Clone, Debug)]
pub(super) struct Links<I> {
    prev: Option<I>,
    next: Option<I>,
}

impl<I> Default for Links<I> {
    fn default() -> Self {
        Self { prev: None, next: None }
    }
}

/// An object that is in one list at a time.
pub(super) trait Linked<I> {
    fn links(&self) -> &Links<I>;
    fn links_mut(&mut self) -> &mut Links<I>;
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

#[derive(Copy, Clone, Debug)]
pub(super) struct List<I> {
    head: Option<I>,
    tail: Option<I>,
    len: u32,
}

impl<I> Default for List<I> {
    fn default() -> Self {
        Self { head: None, tail: None, len: 0 }
    }
}

impl<I: Id> List<I> {
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn first(&self) -> Option<I> {
        self.head
    }

    pub(super) fn last(&self) -> Option<I> {
        self.tail
    }

    pub(super) fn push<T: Linked<I>>(&mut self, slab: &mut Slab<I, T>, id: I, end: End) {
        self.len += 1;
        match end {
            End::Front => {
                *slab[id].links_mut() = Links { prev: None, next: self.head };
                match self.head.replace(id) {
                    Some(head) => slab[head].links_mut().prev = Some(id),
                    None => self.tail = Some(id),
                }
            }
            End::Back => {
                *slab[id].links_mut() = Links { prev: self.tail, next: None };
                match self.tail.replace(id) {
                    Some(tail) => slab[tail].links_mut().next = Some(id),
                    None => self.head = Some(id),
                }
            }
        }
    }

    pub(super) fn remove<T: Linked<I>>(&mut self, slab: &mut Slab<I, T>, id: I) {
        self.len -= 1;
        let Links { prev, next } = std::mem::take(slab[id].links_mut());
        match prev {
            Some(prev) => slab[prev].links_mut().next = next,
            None => self.head = next,
        }
        match next {
            Some(next) => slab[next].links_mut().prev = prev,
            None => self.tail = prev,
        }
    }

    pub(super) fn iter<'a, T: Linked<I>>(
        &self,
        slab: &'a Slab<I, T>,
    ) -> impl Iterator<Item = (I, &'a T)> + use<'a, I, T> {
        let mut next = self.head;
        std::iter::from_fn(move || {
            let id = next?;
            let item = &slab[id];
            next = item.links().next;
            Some((id, item))
        })
    }
}
