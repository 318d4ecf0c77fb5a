//! Whether the kernel segments what we send: not while a path refuses it.
//!
//! One refusal says little: the path to one peer may be narrow, or go through IPsec. Many without a
//! success between them cost more than they bring; then datagrams go out one by one for a while,
//! and it is tried again, for paths change.
#![forbid(unsafe_code)]

use super::offload::run::RunLimits;

/// Refusals one after the other, none accepted in between, until segmentation rests.
const MAX_REFUSALS_IN_A_ROW: u32 = 16;

/// Datagrams that go out one by one until it is tried again. A refused try costs about what a
/// hundred of them do.
const REST_DATAGRAMS: u32 = 8192;

/// What is to be told about segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// It rests, or has ended.
    Off,
    /// It works again.
    On,
}

/// What is known about segmentation by the sockets of one thread.
#[derive(Debug)]
pub(super) struct Segmentation {
    state: State,
    refusals_in_a_row: u32,
    /// The last thing told was [`Turned::Off`].
    told_off: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    On,
    Rests {
        datagrams_left: u32,
    },
    /// The kernel cannot do it.
    Never,
}

impl Segmentation {
    /// As the sockets say at the start.
    pub(super) fn new(available: bool) -> Self {
        let state = if available { State::On } else { State::Never };
        Self { state, refusals_in_a_row: 0, told_off: !available }
    }

    /// What a run may hold.
    pub(super) fn limits(&self) -> RunLimits {
        if self.state == State::On { RunLimits::default() } else { RunLimits::SINGLE }
    }

    /// A run of several datagrams was sent.
    #[inline]
    pub(super) fn accepted(&mut self) -> Option<Turned> {
        self.refusals_in_a_row = 0;
        let news = self.told_off && self.state == State::On;
        news.then(|| {
            self.told_off = false;
            Turned::On
        })
    }

    /// A run of several datagrams was refused, perhaps for its path.
    pub(super) fn refused(&mut self) -> Option<Turned> {
        self.refusals_in_a_row += 1;
        if self.refusals_in_a_row < MAX_REFUSALS_IN_A_ROW || self.state == State::Never {
            return None;
        }
        self.state = State::Rests { datagrams_left: REST_DATAGRAMS };
        self.tell_off()
    }

    /// A run of several datagrams was refused, and every one will be.
    pub(super) fn unsupported(&mut self) -> Option<Turned> {
        self.state = State::Never;
        self.tell_off()
    }

    /// One datagram was sent by itself.
    #[inline]
    pub(super) fn sent_single(&mut self) {
        let State::Rests { datagrams_left } = &mut self.state else { return };
        *datagrams_left -= 1;
        if *datagrams_left == 0 {
            self.state = State::On;
            // If this try is refused, too, it rests at once.
            self.refusals_in_a_row = MAX_REFUSALS_IN_A_ROW - 1;
        }
    }

    fn tell_off(&mut self) -> Option<Turned> {
        let known = std::mem::replace(&mut self.told_off, true);
        (!known).then_some(Turned::Off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rests(segmentation: &Segmentation) -> bool {
        segmentation.limits() == RunLimits::SINGLE
    }

    #[test]
    fn a_few_refusals_change_nothing() {
        let mut segmentation = Segmentation::new(true);
        for _ in 0..3 {
            for _ in 1..MAX_REFUSALS_IN_A_ROW {
                assert_eq!(segmentation.refused(), None);
            }
            assert_eq!(segmentation.accepted(), None);
        }
        assert!(!rests(&segmentation));
    }

    #[test]
    fn it_rests_and_is_tried_again_until_it_works() {
        let mut segmentation = Segmentation::new(true);
        for _ in 1..MAX_REFUSALS_IN_A_ROW {
            segmentation.refused();
        }
        assert_eq!(segmentation.refused(), Some(Turned::Off));
        for _ in 0..3 {
            for _ in 0..REST_DATAGRAMS {
                assert!(rests(&segmentation));
                segmentation.sent_single();
            }
            assert!(!rests(&segmentation));
            // Nobody needs to hear of that again.
            assert_eq!(segmentation.refused(), None);
        }
        for _ in 0..REST_DATAGRAMS {
            segmentation.sent_single();
        }
        assert_eq!(segmentation.accepted(), Some(Turned::On));
        assert_eq!(segmentation.accepted(), None);
        assert_eq!(segmentation.refused(), None);
        assert!(!rests(&segmentation));
    }

    #[test]
    fn what_the_kernel_cannot_do_is_never_tried_again() {
        let mut segmentation = Segmentation::new(true);
        assert_eq!(segmentation.unsupported(), Some(Turned::Off));
        // What was planned before is still sent, whatever comes of it.
        for _ in 0..2 * MAX_REFUSALS_IN_A_ROW {
            assert_eq!(segmentation.refused(), None);
            assert_eq!(segmentation.unsupported(), None);
            assert_eq!(segmentation.accepted(), None);
        }
        for _ in 0..2 * REST_DATAGRAMS {
            segmentation.sent_single();
        }
        assert!(rests(&segmentation));
        assert!(rests(&Segmentation::new(false)));
    }
}
