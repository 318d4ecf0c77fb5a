//! Datagrams that can be told from each other and compared whole at the far end.
//!
//! Everything about a datagram follows from its flow's key and its number. It begins with the
//! number; one that is too short for that is recognised by its bytes alone.
#![forbid(unsafe_code)]

use std::ops::{Range, RangeInclusive};

use crate::pattern::{Pattern, mix};

/// Payload of a UDP datagram that fills the tunnel's MTU of 1,472 bytes.
pub(crate) const FULL_BYTES: usize = 1_444;

/// The number at the beginning.
const NUMBER_BYTES: usize = 8;

/// Shorter ones carry no number: after it, some bytes must be left to compare.
pub(crate) const NUMBERED_BYTES: usize = 12;

/// How far before the newest datagram a short one is looked for: farther than one burst.
const REACH: u64 = 1_024;

/// Numbers of one train; those that its datagrams do not need stay unused.
pub(crate) const TRAIN_NUMBERS: u64 = 64;

/// Bytes of the longest train: less than the 65,507 that an IPv4 UDP datagram has room for.
const TRAIN_BYTES: u64 = 65_000;

/// What a flow's datagrams look like.
pub(crate) enum Shape {
    /// Each by itself, of so many bytes; a third of them near the lower end.
    Single(RangeInclusive<usize>),
    /// Many by one call with `UDP_SEGMENT`, all but the last of a train equally long.
    Trains,
}

/// A train: `count` datagrams of `segment_bytes`, but the last of `last_bytes`.
pub(crate) struct Train {
    pub(crate) count: u64,
    pub(crate) segment_bytes: u16,
    last_bytes: u16,
}

/// The datagrams of one flow, as both ends know them.
#[derive(Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// What they look like.
    pub(crate) shape: &'a Shape,
    /// What their bytes are cut from.
    pub(crate) pattern: &'a Pattern,
    /// Tells the flow from others.
    pub(crate) key: u64,
}

impl Sequence<'_> {
    /// The train that begins with the datagram `TRAIN_NUMBERS * number`.
    pub(crate) fn train(&self, number: u64) -> Train {
        let dice = mix(self.key ^ 1, number);
        let segment_bytes = NUMBERED_BYTES as u64 + (dice >> 32) % (FULL_BYTES as u64 - 11);
        let most = TRAIN_NUMBERS.min(TRAIN_BYTES / segment_bytes);
        Train {
            count: 2 + dice % (most - 1),
            segment_bytes: segment_bytes as u16,
            last_bytes: (1 + mix(self.key ^ 2, number) % segment_bytes) as u16,
        }
    }

    /// The length of a datagram; `None` if there is none of that number.
    fn bytes(&self, number: u64) -> Option<usize> {
        match self.shape {
            Shape::Single(sizes) => {
                let dice = mix(self.key ^ 3, number);
                let most = (sizes.end() - sizes.start() + 1) as u64;
                let span = if dice.is_multiple_of(3) { most.min(64) } else { most };
                Some(sizes.start() + ((dice >> 8) % span) as usize)
            }
            Shape::Trains => {
                let train = self.train(number / TRAIN_NUMBERS);
                match number % TRAIN_NUMBERS {
                    place if place + 1 < train.count => Some(train.segment_bytes.into()),
                    place if place + 1 == train.count => Some(train.last_bytes.into()),
                    _ => None,
                }
            }
        }
    }

    /// Appends a datagram to `buffer`.
    pub(crate) fn write(&self, number: u64, buffer: &mut Vec<u8>) {
        let bytes = self.bytes(number).expect("only numbers that are in use are sent");
        let piece = self.pattern.piece(self.key, number);
        if bytes < NUMBERED_BYTES {
            buffer.extend_from_slice(&piece[..bytes]);
        } else {
            buffer.extend_from_slice(&number.to_le_bytes());
            buffer.extend_from_slice(&piece[..bytes - NUMBER_BYTES]);
        }
    }

    /// Whether this is that datagram, bit by bit.
    fn is(&self, number: u64, datagram: &[u8]) -> bool {
        let piece = self.pattern.piece(self.key, number);
        self.bytes(number) == Some(datagram.len())
            && match datagram.split_first_chunk::<NUMBER_BYTES>() {
                Some((head, body)) if datagram.len() >= NUMBERED_BYTES => {
                    u64::from_le_bytes(*head) == number && *body == piece[..body.len()]
                }
                _ => *datagram == piece[..datagram.len()],
            }
    }
}

/// What became of a flow's datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Handed to the kernel.
    pub(crate) sent: u64,
    /// Arrived, each once.
    pub(crate) received: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Arrived again.
    pub(crate) duplicates: u64,
    /// Arrived after one that was sent later.
    pub(crate) reordered: u64,
    /// Arrived, but as nothing that was sent.
    pub(crate) corrupt: u64,
    /// Never seen, but under way while a fault may have shown.
    pub(crate) excused: u64,
}

impl Counts {
    /// Sent and never seen.
    pub(crate) fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// Adds another flow's.
    pub(crate) fn add(&mut self, other: &Counts) {
        self.sent += other.sent;
        self.received += other.received;
        self.bytes += other.bytes;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.excused += other.excused;
    }
}

/// The receiver's book.
#[derive(Default)]
pub(crate) struct Ledger {
    /// All but `sent` and `excused`.
    pub(crate) counts: Counts,
    /// A bit for each number that was seen.
    seen: Vec<u64>,
    /// One more than the highest number seen.
    next: u64,
}

impl Ledger {
    /// Enters what arrived, when the numbers below `limit` were sent or are being sent.
    pub(crate) fn enter(&mut self, sequence: &Sequence<'_>, limit: u64, datagram: &[u8]) {
        let Some(number) = self.recognise(sequence, limit, datagram) else {
            self.counts.corrupt += 1;
            return;
        };
        if self.has(number) {
            self.counts.duplicates += 1;
            return;
        }
        let word = (number / 64) as usize;
        self.seen.resize(self.seen.len().max(word + 1), 0);
        self.seen[word] |= 1 << (number % 64);
        self.counts.received += 1;
        self.counts.bytes += datagram.len() as u64;
        if number < self.next {
            self.counts.reordered += 1;
        }
        self.next = self.next.max(number + 1);
    }

    /// How many of those numbers were seen.
    pub(crate) fn count(&self, numbers: Range<u64>) -> u64 {
        numbers.filter(|&number| self.has(number)).count() as u64
    }

    fn has(&self, number: u64) -> bool {
        let word = self.seen.get((number / 64) as usize).copied().unwrap_or(0);
        word >> (number % 64) & 1 == 1
    }

    fn recognise(&self, sequence: &Sequence<'_>, limit: u64, datagram: &[u8]) -> Option<u64> {
        if datagram.len() >= NUMBERED_BYTES {
            let head = datagram.first_chunk().copied()?;
            let number = u64::from_le_bytes(head);
            return (number < limit && sequence.is(number, datagram)).then_some(number);
        }
        // The next one first, so that in the usual order the first look finds it. After a fault, many
        // bursts may be missing.
        let later = self.next..limit;
        let earlier = self.next.saturating_sub(REACH)..self.next.min(limit);
        let mut seen = None;
        for number in later.chain(earlier.rev()).filter(|&n| sequence.is(n, datagram)) {
            if !self.has(number) {
                return Some(number);
            }
            seen = Some(number);
        }
        seen
    }
}
