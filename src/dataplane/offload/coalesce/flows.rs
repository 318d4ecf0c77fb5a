//! Which entry of a batch is the newest of a flow: a small table that never grows.
#![forbid(unsafe_code)]

use super::Entry;
use super::admit::{FlowKey, Kin};

/// A flow's hash leads to one set; the flow is in one of its ways.
const SETS: usize = 64;
const WAYS: usize = 4;
const EMPTY: u32 = u32::MAX;

/// Classes of flows that can be barred by themselves.
const BARS: usize = 64;

/// The open entries by flow. When a set is full its oldest flow is forgotten: its next packet opens
/// a new item. Whoever sends hostile addresses can cost others their merging and nothing more.
#[derive(Debug)]
pub(super) struct Flows {
    sets: Box<[[u32; WAYS]; SETS]>,
    /// By hash of kin: entries before this index may not grow any more.
    bars: Box<[u32; BARS]>,
    /// Whether there is any bar in this batch.
    barred: bool,
}

impl Flows {
    pub(super) fn new() -> Self {
        Self { sets: Box::new([[EMPTY; WAYS]; SETS]), bars: Box::new([0; BARS]), barred: false }
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.sets.fill([EMPTY; WAYS]);
        if self.barred {
            self.bars.fill(0);
            self.barred = false;
        }
    }

    /// The open entry of the flow.
    #[inline]
    pub(super) fn find(&self, entries: &[Entry], key: &FlowKey) -> Option<usize> {
        self.sets[set_of(key)]
            .iter()
            .map(|index| *index as usize)
            .find(|index| entries.get(*index).is_some_and(|entry| entry.open && entry.key == *key))
    }

    /// Records an entry that is open as its flow's newest; the flow has no other that can be
    /// found. The oldest flow of a full set is forgotten.
    #[inline]
    pub(super) fn insert(&mut self, entries: &[Entry], index: usize) {
        let key = match entries.get(index) {
            Some(entry) if entry.open => entry.key,
            _ => return,
        };
        let set = &mut self.sets[set_of(&key)];
        // A free way counts as the oldest of all.
        let age = |way: &u32| match entries.get(*way as usize) {
            Some(entry) if entry.open => *way + 1,
            _ => 0,
        };
        if let Some(way) = set.iter_mut().min_by_key(|way| age(way)) {
            *way = index as u32;
        }
    }

    /// Forbids all entries before `index` to grow that `kin` may belong to; all if there is no
    /// telling.
    pub(super) fn bar(&mut self, kin: Option<Kin>, index: usize) {
        self.barred = true;
        match kin {
            Some(kin) => self.bars[bar_of(kin)] = index as u32,
            None => self.bars.fill(index as u32),
        }
    }

    /// Whether the flow's entry at `index` was barred.
    #[inline]
    pub(super) fn is_barred(&self, key: &FlowKey, index: usize) -> bool {
        self.barred && index < self.bars[bar_of(key.kin())] as usize
    }
}

#[inline]
fn set_of(key: &FlowKey) -> usize {
    (key.hash() >> (u64::BITS - SETS.ilog2())) as usize
}

#[inline]
fn bar_of(kin: Kin) -> usize {
    (kin.0 >> (u64::BITS - BARS.ilog2())) as usize
}
