//! Planning sends: which datagrams may leave in one `sendmsg` with `UDP_SEGMENT`.
#![forbid(unsafe_code)]

use super::limits::{UDP_MAX_PAYLOAD_BYTES, UDP_SAFE_SEGMENTS};
use super::span::Span;

/// One packet on its way out, in up to two pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagram {
    /// A header written anew, in the arena; empty if the packet leaves as it was read.
    pub head: Span,
    /// The payload behind `head`, or the whole packet, in the slab that was read into.
    pub body: Span,
}

impl Datagram {
    /// A packet that leaves as it was read.
    #[inline]
    pub fn whole(packet: Span) -> Self {
        Self { head: Span::default(), body: packet }
    }

    /// Length of both pieces, in bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.head.len.saturating_add(self.body.len)
    }

    /// Whether there are no bytes at all.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What one run may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// Datagrams in one run; 1 turns segmentation off.
    pub max_segments: u16,
    /// Payload of one run, in bytes.
    pub max_bytes: u32,
}

impl Default for RunLimits {
    /// What every kernel with `UDP_SEGMENT` takes (offload-pitfalls A6 to A8).
    fn default() -> Self {
        Self { max_segments: UDP_SAFE_SEGMENTS as u16, max_bytes: UDP_MAX_PAYLOAD_BYTES as u32 }
    }
}

impl RunLimits {
    /// Every datagram by itself: for a socket or a path that cannot segment.
    pub const SINGLE: Self = Self { max_segments: 1, max_bytes: UDP_MAX_PAYLOAD_BYTES as u32 };
}

/// Datagrams to one peer, in the order in which they were planned: all of `segment_bytes`, only
/// the last may be shorter (A12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whom the datagrams are for: the caller's number.
    pub peer: u32,
    /// Length of every datagram but the last, in bytes. A datagram longer than any that can be
    /// sent stands alone in its run and counts as 65,535 here.
    pub segment_bytes: u16,
    /// How many datagrams there are.
    pub count: u16,
    /// Length of all of them, in bytes.
    pub total_bytes: u32,
    first: u32,
    last: u32,
    open: bool,
}

/// The plan has no room for another datagram or run: send what it holds, clear it, push again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the send plan is full")]
pub struct Full;

#[derive(Clone, Copy, Debug)]
struct Link {
    datagram: Datagram,
    next: u32,
}

/// Slots that remember a peer's newest run; many more than peers are busy at once, because two
/// that share a slot close each other's runs.
const SLOTS: usize = 256;

/// Gathers a batch of datagrams into runs.
///
/// The datagrams of one peer keep their order: each joins the peer's newest run or opens the next,
/// and runs are sent in the order in which they were opened. Datagrams of other peers in between
/// do not end a run.
#[derive(Debug)]
pub struct SendPlan {
    limits: RunLimits,
    links: Vec<Link>,
    runs: Vec<Run>,
    max_datagrams: usize,
    max_runs: usize,
    /// By hash of the peer, the newest run of any peer of that hash. What a former batch left here
    /// is harmless: the run of that number, if it has this very peer, was put here when it opened.
    newest: Box<[u32; SLOTS]>,
}

impl SendPlan {
    /// A plan for batches of at most `max_datagrams` in at most `max_runs`, with the default
    /// [`RunLimits`]. Nothing is allocated after this.
    pub fn with_capacity(max_datagrams: usize, max_runs: usize) -> Self {
        let max_datagrams = max_datagrams.min(u32::MAX as usize);
        Self {
            limits: RunLimits::default(),
            links: Vec::with_capacity(max_datagrams),
            runs: Vec::with_capacity(max_runs),
            max_datagrams,
            max_runs,
            newest: Box::new([u32::MAX; SLOTS]),
        }
    }

    /// Changes what a run may hold, for all that is planned from now on. Fewer than one datagram
    /// counts as one.
    pub fn set_limits(&mut self, limits: RunLimits) {
        self.limits = limits;
        for run in &mut self.runs {
            run.open = false;
        }
    }

    /// What a run may hold.
    #[inline]
    pub fn limits(&self) -> RunLimits {
        self.limits
    }

    /// Forgets the batch.
    #[inline]
    pub fn clear(&mut self) {
        self.links.clear();
        self.runs.clear();
    }

    /// How many datagrams certainly fit before the next [`clear`](Self::clear).
    #[inline]
    pub fn room(&self) -> usize {
        (self.max_datagrams - self.links.len()).min(self.max_runs - self.runs.len())
    }

    /// Whether nothing is planned.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Adds `datagram` behind all that is planned for `peer`.
    ///
    /// # Errors
    /// [`Full`], and nothing is added.
    #[inline]
    pub fn push(&mut self, peer: u32, datagram: Datagram) -> Result<(), Full> {
        if self.links.len() >= self.max_datagrams {
            return Err(Full);
        }
        let index = self.links.len() as u32;
        let len = datagram.len();
        let slot = slot_of(peer);
        let newest = self.newest[slot] as usize;
        match self.runs.get_mut(newest) {
            Some(run) if run.peer == peer && joins(run, len, self.limits) => {
                self.links[run.last as usize].next = index;
                run.last = index;
                run.count += 1;
                run.total_bytes += len;
                run.open = len == u32::from(run.segment_bytes);
            }
            _ => {
                if self.runs.len() >= self.max_runs {
                    return Err(Full);
                }
                self.newest[slot] = self.runs.len() as u32;
                self.runs.push(Run {
                    peer,
                    segment_bytes: u16::try_from(len).unwrap_or(u16::MAX),
                    count: 1,
                    total_bytes: len,
                    first: index,
                    last: index,
                    open: len > 0 && len <= u32::from(u16::MAX),
                });
            }
        }
        self.links.push(Link { datagram, next: u32::MAX });
        Ok(())
    }

    /// The runs, in the order in which they are to be sent.
    #[inline]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The datagrams of one of this plan's runs, in order.
    #[inline]
    pub fn datagrams(&self, run: &Run) -> impl Iterator<Item = &Datagram> {
        let mut next = run.first;
        (0..run.count).map_while(move |_| {
            let link = self.links.get(next as usize)?;
            next = link.next;
            Some(&link.datagram)
        })
    }
}

/// Whether a datagram of `len` bytes may be the next of `run`.
#[inline]
fn joins(run: &Run, len: u32, limits: RunLimits) -> bool {
    run.open
        && len > 0
        && len <= u32::from(run.segment_bytes)
        && run.count < limits.max_segments
        && run.total_bytes + len <= limits.max_bytes
}

/// Fibonacci hashing: it keeps any 128 peers with numbers in a row apart.
#[inline]
fn slot_of(peer: u32) -> usize {
    const GOLDEN: u32 = 0x9e37_79b9;
    (peer.wrapping_mul(GOLDEN) >> (u32::BITS - SLOTS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn datagram(number: u32, len: u32) -> Datagram {
        Datagram {
            head: Span::new(number, len.min(40)),
            body: Span::new(number, len - len.min(40)),
        }
    }

    /// (peer, segment, count, total) of every run for `(peer, len)` pushed in turn.
    fn plan(limits: RunLimits, pushes: &[(u32, u32)]) -> Vec<(u32, u16, u16, u32)> {
        let mut plan = SendPlan::with_capacity(1000, 1000);
        plan.set_limits(limits);
        for (number, (peer, len)) in pushes.iter().enumerate() {
            plan.push(*peer, datagram(number as u32, *len)).unwrap();
        }
        plan.runs()
            .iter()
            .map(|run| (run.peer, run.segment_bytes, run.count, run.total_bytes))
            .collect()
    }

    #[test]
    fn a_shorter_datagram_ends_the_run_and_a_longer_one_opens_the_next() {
        let pushes = [(1, 100), (1, 100), (1, 60), (1, 60), (1, 61), (1, 61)];
        let runs = plan(RunLimits::default(), &pushes);
        assert_eq!(runs, [(1, 100, 3, 260), (1, 60, 1, 60), (1, 61, 2, 122)]);
    }

    #[test]
    fn a_superpacket_with_its_headers_needs_two_sends() {
        let mut pushes = vec![(1, 1472); 44];
        pushes.push((1, 1472));
        let runs = plan(RunLimits::default(), &pushes);
        assert_eq!(runs, [(1, 1472, 44, 64_768), (1, 1472, 1, 1472)]);
    }

    #[test]
    fn small_datagrams_stop_at_the_segment_limit() {
        let runs = plan(RunLimits::default(), &[(1, 92); 64]);
        assert_eq!(runs, [(1, 92, 63, 63 * 92), (1, 92, 1, 92)]);
    }

    #[test]
    fn without_segmentation_every_datagram_stands_alone() {
        let runs = plan(RunLimits::SINGLE, &[(1, 100), (1, 100), (2, 100)]);
        assert_eq!(runs.len(), 3);
        assert!(runs.iter().all(|run| run.2 == 1));
    }

    #[test]
    fn other_peers_in_between_do_not_end_a_run() {
        let pushes: Vec<_> = (0..640).map(|i| (i % 64, 1400)).collect();
        let runs = plan(RunLimits::default(), &pushes);
        assert_eq!(runs.len(), 64);
        assert!(runs.iter().all(|run| run.2 == 10));
    }

    #[test]
    fn peers_numbered_in_a_row_do_not_share_slots() {
        for first in [0, 1000, u32::MAX - 64] {
            let slots: std::collections::HashSet<_> =
                (0..128).map(|i| slot_of(first.wrapping_add(i))).collect();
            assert_eq!(slots.len(), 128);
        }
    }

    #[test]
    fn limits_lowered_at_run_time_end_open_runs() {
        let mut plan = SendPlan::with_capacity(10, 10);
        plan.push(1, datagram(0, 100)).unwrap();
        plan.set_limits(RunLimits { max_segments: 2, max_bytes: 1000 });
        for number in 1..4 {
            plan.push(1, datagram(number, 100)).unwrap();
        }
        let counts: Vec<_> = plan.runs().iter().map(|run| run.count).collect();
        assert_eq!(counts, [1, 2, 1]);
    }

    #[test]
    fn nonsense_lengths_stand_alone() {
        let huge = Datagram::whole(Span::new(0, u32::MAX));
        let mut plan = SendPlan::with_capacity(10, 10);
        for piece in [huge, huge, Datagram::default(), Datagram::default(), datagram(0, 9)] {
            plan.push(1, piece).unwrap();
        }
        assert!(plan.runs().iter().all(|run| run.count == 1));
    }

    #[test]
    fn a_full_plan_refuses_and_is_usable_after_clear() {
        let mut plan = SendPlan::with_capacity(2, 9);
        plan.push(1, datagram(0, 100)).unwrap();
        plan.push(1, datagram(1, 100)).unwrap();
        assert_eq!(plan.push(1, datagram(2, 100)), Err(Full));
        assert_eq!((plan.room(), plan.runs()[0].count), (0, 2));
        plan.clear();
        assert!(plan.is_empty() && plan.runs().is_empty());
        let mut plan = SendPlan::with_capacity(9, 1);
        plan.push(1, datagram(0, 100)).unwrap();
        assert_eq!(plan.push(2, datagram(1, 100)), Err(Full));
        assert_eq!(plan.push(1, datagram(1, 100)), Ok(()));
    }

    #[test]
    fn a_former_batch_leaves_no_trace() {
        let mut plan = SendPlan::with_capacity(10, 10);
        for peer in [7, 8, 9] {
            plan.push(peer, datagram(0, 100)).unwrap();
        }
        plan.clear();
        for peer in [9, 8, 7, 7, 8, 9] {
            plan.push(peer, datagram(1, 50)).unwrap();
        }
        let runs: Vec<_> = plan.runs().iter().map(|run| (run.peer, run.count)).collect();
        assert_eq!(runs, [(9, 2), (8, 2), (7, 2)]);
    }

    proptest! {
        #[test]
        fn runs_are_legal_and_keep_every_peers_order(
            batches in prop::collection::vec(
                prop::collection::vec((0..6_u32, prop_oneof![Just(1472_u32), Just(52), 1..1500_u32]), 0..200),
                1..4,
            ),
            spread in prop_oneof![Just(1_u32), any::<u32>()],
            max_segments in 1..70_u16,
            max_bytes in 1500..65_507_u32,
        ) {
            let limits = RunLimits { max_segments, max_bytes };
            let mut plan = SendPlan::with_capacity(200, 200);
            plan.set_limits(limits);
            for pushes in batches {
                plan.clear();
                let mut expected: HashMap<u32, Vec<u32>> = HashMap::new();
                for (number, (peer, len)) in pushes.iter().enumerate() {
                    let peer = peer.wrapping_mul(spread);
                    plan.push(peer, datagram(number as u32, *len)).unwrap();
                    expected.entry(peer).or_default().push(number as u32);
                }
                let mut planned: HashMap<u32, Vec<u32>> = HashMap::new();
                for run in plan.runs() {
                    let datagrams: Vec<_> = plan.datagrams(run).collect();
                    prop_assert_eq!(datagrams.len(), usize::from(run.count));
                    prop_assert!(run.count <= limits.max_segments && run.total_bytes <= limits.max_bytes);
                    prop_assert_eq!(datagrams.iter().map(|d| d.len()).sum::<u32>(), run.total_bytes);
                    let (last, full) = datagrams.split_last().unwrap();
                    prop_assert!(full.iter().all(|d| d.len() == u32::from(run.segment_bytes)));
                    prop_assert!(!last.is_empty() && last.len() <= u32::from(run.segment_bytes));
                    planned.entry(run.peer).or_default().extend(datagrams.iter().map(|d| d.body.offset));
                }
                prop_assert_eq!(planned, expected);
            }
        }
    }
}
