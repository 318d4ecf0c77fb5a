//! Kernels that lack something: chosen system calls of a daemon fail with a chosen errno (seccomp).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// A system call that is refused. The kernel's filter sees numbers only, not what pointers lead to.
#[derive(Clone, Debug)]
pub struct Refusal {
    number: libc::c_long,
    /// All must hold; without any, the call is refused whatever its arguments are.
    conditions: Vec<SeccompCondition>,
    errno: i32,
}

impl Refusal {
    /// The system call of that number, always.
    pub fn of(number: libc::c_long, errno: i32) -> Refusal {
        Refusal { number, conditions: Vec::new(), errno }
    }

    /// `ioctl` with this request.
    pub fn of_ioctl(request: u64, errno: i32) -> Refusal {
        Refusal::of(libc::SYS_ioctl, errno).if_argument(1, SeccompCmpOp::Eq, request)
    }

    /// `setsockopt` of this option.
    pub fn of_option(level: i32, option: i32, errno: i32) -> Refusal {
        Refusal::of(libc::SYS_setsockopt, errno)
            .if_argument(1, SeccompCmpOp::Eq, level as u64)
            .if_argument(2, SeccompCmpOp::Eq, option as u64)
    }

    /// Only if argument `index`, from 0, has all these bits.
    pub fn with_bits(self, index: u8, bits: u32) -> Refusal {
        let bits = u64::from(bits);
        self.if_argument(index, SeccompCmpOp::MaskedEq(bits), bits)
    }

    /// Only if argument `index`, from 0, is so much or more.
    pub fn at_least(self, index: u8, value: u32) -> Refusal {
        self.if_argument(index, SeccompCmpOp::Ge, u64::from(value))
    }

    /// Only of this descriptor, which all calls that have one take first.
    pub fn on(self, fd: RawFd) -> Refusal {
        self.if_argument(0, SeccompCmpOp::Eq, fd as u64)
    }

    fn if_argument(mut self, index: u8, is: SeccompCmpOp, value: u64) -> Refusal {
        // All arguments that are asked for are ints.
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, is, value);
        self.conditions.push(condition.expect("a call has six arguments"));
        self
    }

    fn filter(&self) -> BpfProgram {
        let rules = match self.conditions.as_slice() {
            [] => Vec::new(),
            conditions => vec![SeccompRule::new(conditions.to_vec()).expect("it is not empty")],
        };
        let errno = u32::try_from(self.errno).expect("errnos are positive");
        let filter = SeccompFilter::new(
            BTreeMap::from([(self.number, rules)]),
            SeccompAction::Allow,
            SeccompAction::Errno(errno),
            TargetArch::try_from(std::env::consts::ARCH).expect("seccompiler knows it"),
        );
        filter.and_then(BpfProgram::try_from).expect("the filter is small")
    }
}

/// Calls `start` on a thread of its own that is refused all this; a process that is started there
/// inherits it, with all that it starts.
pub fn refused<T: Send>(refusals: &[Refusal], start: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for refusal in refusals {
                apply_filter(&refusal.filter()).expect("the kernel has seccomp");
            }
            start()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
