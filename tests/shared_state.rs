//! What the threads of the data path share, under stress.
#![forbid(unsafe_code)]

use std::sync::Barrier;
use std::thread;

use flanneld::dataplane::stats::Counter;

const THREADS: usize = 4;

#[test]
fn counters_of_many_threads_lose_nothing() {
    const ADDITIONS: u64 = 200_000;
    let counter = Counter::default();
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                let mut before = 0;
                for _ in 0..ADDITIONS {
                    counter.add(3);
                    let now = counter.get();
                    assert!(now >= before + 3, "{now} after {before}");
                    before = now;
                }
            });
        }
    });
    assert_eq!(counter.get(), THREADS as u64 * ADDITIONS * 3);
}
