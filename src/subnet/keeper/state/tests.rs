use super::*;
use crate::subnet::lease::LeaseAttrs;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const TIMING: Timing = Timing { ttl: DAY, margin: HOUR };

fn start() -> Moment {
    Moment { wall: SystemTime::UNIX_EPOCH + 20_000 * DAY, steady: Duration::ZERO }
}

fn lease(subnet: &str, ip: &str, expiry: Expiry) -> Lease {
    let attrs = LeaseAttrs::udp(ip.parse().unwrap());
    Lease { subnet: subnet.parse().unwrap(), attrs, expiry }
}

fn own(expiry: Expiry) -> Lease {
    lease("10.5.1.0-24", "10.4.7.21", expiry)
}

/// The end of a lease written at `now`.
fn full(now: Moment) -> Expiry {
    Expiry::At(now.wall + DAY)
}

fn keeper() -> Keeper {
    Keeper::new(own(full(start())), TIMING, start(), 7)
}

fn wait(keeper: &mut Keeper, now: Moment) -> Duration {
    match keeper.poll(now) {
        Poll::Wait(Some(left)) => left,
        other => panic!("expected to wait, got {other:?}"),
    }
}

#[test]
fn a_lease_is_renewed_a_margin_before_its_end_and_again() {
    let mut keeper = keeper();
    let mut now = start();
    for _ in 0..10 {
        let left = wait(&mut keeper, now);
        assert!(left <= DAY - HOUR && left >= DAY - 2 * HOUR, "{left:?}");
        now = now.after(left);
        assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
        assert_eq!(keeper.poll(now), Poll::Wait(None), "one request at a time");
        assert!(!keeper.finish(Outcome::Ours(full(now)), now));
    }
}

#[test]
fn hosts_that_started_together_renew_over_as_long_as_the_margin() {
    let mut dues: Vec<Duration> = (0..1000)
        .map(|seed| wait(&mut Keeper::new(own(full(start())), TIMING, start(), seed), start()))
        .collect();
    dues.sort();
    assert!(dues[0] < DAY - 2 * HOUR + HOUR / 20 && dues[999] > DAY - HOUR - HOUR / 20);
    // A tenth of the time, a tenth of the hosts, and chance some more.
    let most = dues
        .iter()
        .map(|from| dues.iter().filter(|due| **due >= *from && **due < *from + HOUR / 10).count());
    assert!(most.max().unwrap() < 150);
}

#[test]
fn a_store_that_tells_of_another_holder_is_asked_again_soon_though_a_request_failed() {
    let mut keeper = keeper();
    let mut now = start().after(DAY);
    for _ in 0..10 {
        assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
        keeper.finish(Outcome::Failed, now);
        now = now.after(wait(&mut keeper, now));
    }
    assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
    let taken = lease("10.5.1.0-24", "10.4.7.66", Expiry::Unknown);
    keeper.observe(&WatchEvent::Put(taken), now);
    keeper.finish(Outcome::Failed, now);
    assert!(wait(&mut keeper, now) <= RETRY_MIN);
}

#[test]
fn the_longest_margin_does_not_mean_renewing_all_the_time() {
    for minutes in [1380, 1439] {
        let timing = Timing { ttl: DAY, margin: Duration::from_secs(60 * minutes) };
        let life = DAY - timing.margin;
        for seed in 0..100 {
            let mut keeper = Keeper::new(own(full(start())), timing, start(), seed);
            let left = wait(&mut keeper, start());
            assert!(left >= life / 2 && left <= life, "{left:?} of {life:?}");
        }
    }
}

#[test]
fn a_margin_that_is_no_shorter_than_the_life_means_half_of_it() {
    for margin in [DAY, 2 * DAY] {
        let timing = Timing { ttl: DAY, margin };
        let mut keeper = Keeper::new(own(full(start())), timing, start(), 7);
        let left = wait(&mut keeper, start());
        assert!(left <= DAY / 2 && left >= DAY / 4, "{left:?}");
    }
}

#[test]
fn hosts_that_started_together_do_not_renew_together() {
    let mut times: Vec<Duration> = (0..100)
        .map(|seed| {
            let mut keeper = Keeper::new(own(full(start())), TIMING, start(), seed);
            wait(&mut keeper, start())
        })
        .collect();
    times.sort();
    times.dedup();
    assert!(times.len() > 90);
}

#[test]
fn a_clock_that_jumped_is_noticed_either_way() {
    let mut slept = keeper();
    let now = Moment { wall: start().wall + 2 * DAY, steady: Duration::from_secs(1) };
    assert_eq!(slept.poll(now), Poll::Do(Step::Renew), "the host slept");

    let mut set_back = keeper();
    let now = Moment { wall: start().wall - DAY, steady: DAY };
    assert_eq!(set_back.poll(now), Poll::Do(Step::Renew), "the wall clock was set back");
}

#[test]
fn a_failed_renewal_is_tried_again_later_and_later_but_each_minute() {
    let mut keeper = keeper();
    let mut now = start().after(DAY);
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
        keeper.finish(Outcome::Failed, now);
        let left = wait(&mut keeper, now);
        assert!(left >= RETRY_MIN / 4 && left <= RETRY_MAX, "{left:?}");
        longest = longest.max(left);
        now = now.after(left);
    }
    assert!(longest > RETRY_MAX / 2);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
    keeper.finish(Outcome::Ours(full(now)), now);
    assert!(wait(&mut keeper, now) > 20 * HOUR);
}

#[test]
fn a_reservation_is_not_renewed() {
    let mut keeper = Keeper::new(own(Expiry::Permanent), TIMING, start(), 7);
    assert_eq!(keeper.poll(start().after(100 * DAY)), Poll::Wait(None));
    // An operator takes the reservation back.
    let now = start().after(HOUR);
    keeper.observe(&WatchEvent::Put(own(Expiry::At(now.wall + DAY))), now);
    assert!(wait(&mut keeper, now) <= DAY - HOUR);
}

#[test]
fn a_lease_becomes_a_reservation_while_we_run() {
    let mut keeper = keeper();
    keeper.observe(&WatchEvent::Put(own(Expiry::Permanent)), start());
    assert_eq!(keeper.poll(start().after(100 * DAY)), Poll::Wait(None));
    assert_eq!(keeper.lease().expiry, Expiry::Permanent);
}

#[test]
fn a_deleted_lease_is_won_back_at_once() {
    for event in [WatchEvent::Removed(own(Expiry::Unknown).subnet), WatchEvent::Snapshot(vec![])] {
        let mut keeper = keeper();
        let now = start().after(HOUR);
        keeper.observe(&event, now);
        assert_eq!(keeper.poll(now), Poll::Do(Step::Create));
        assert!(!keeper.finish(Outcome::Ours(full(now)), now));
        assert!(wait(&mut keeper, now) > 20 * HOUR);
    }
}

/// As where our clock is more than a day behind, and the others clear away what we write.
#[test]
fn a_lease_that_does_not_stay_ours_is_won_back_later_and_later() {
    let gone = WatchEvent::Removed(own(Expiry::Unknown).subnet);
    // It is reported while the lease is being won back, or after that.
    for early in [true, false] {
        let mut keeper = keeper();
        let mut now = start().after(HOUR);
        let mut longest = Duration::ZERO;
        keeper.observe(&gone, now);
        for round in 0..50 {
            if round > 0 {
                let left = wait(&mut keeper, now);
                assert!(left >= RETRY_MIN / 4 && left <= RETRY_MAX, "{left:?}");
                longest = longest.max(left);
                now = now.after(left);
            }
            assert_eq!(keeper.poll(now), Poll::Do(Step::Create));
            if early {
                keeper.observe(&gone, now);
                keeper.finish(Outcome::Ours(full(now)), now);
                assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
                keeper.finish(Outcome::Lost, now);
            } else {
                keeper.finish(Outcome::Ours(full(now)), now);
                keeper.observe(&gone, now);
            }
        }
        assert!(longest > RETRY_MAX / 2);
        now = now.after(wait(&mut keeper, now));
        assert_eq!(keeper.poll(now), Poll::Do(Step::Create));
        keeper.finish(Outcome::Ours(full(now)), now);
        // This time it stayed for a while.
        now = now.after(LOST_AGAIN_WITHIN);
        keeper.observe(&gone, now);
        assert_eq!(keeper.poll(now), Poll::Do(Step::Create), "at once");
    }
}

#[test]
fn what_the_watch_says_late_costs_two_requests_and_nothing_else() {
    let mut keeper = keeper();
    let now = start();
    keeper.observe(&WatchEvent::Removed(own(Expiry::Unknown).subnet), now);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Create));
    keeper.finish(Outcome::Taken, now);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Renew), "taken by ourselves?");
    assert!(!keeper.finish(Outcome::Ours(full(now)), now));
    assert!(wait(&mut keeper, now) > 20 * HOUR);
}

#[test]
fn a_subnet_that_another_host_holds_is_given_up() {
    let mut keeper = keeper();
    let now = start();
    let thief = lease("10.5.1.0-24", "10.4.7.66", Expiry::Unknown);
    keeper.observe(&WatchEvent::Put(thief), now);
    for (step, outcome) in [(Step::Renew, Outcome::Lost), (Step::Create, Outcome::Taken)] {
        assert_eq!(keeper.poll(now), Poll::Do(step));
        assert!(!keeper.finish(outcome, now));
    }
    assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
    keeper.finish(Outcome::Lost, now);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Acquire));
    let won = lease("10.5.9.0-24", "10.4.7.21", full(now));
    assert!(keeper.finish(Outcome::Won(won.clone()), now));
    assert_eq!(*keeper.lease(), won);
    assert!(wait(&mut keeper, now) > 20 * HOUR);
}

#[test]
fn a_lease_found_after_a_long_sleep_is_never_taken_from_its_new_holder() {
    let mut keeper = keeper();
    let now = start().after(3 * DAY);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Renew), "which compares");
    keeper.finish(Outcome::Lost, now);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Create), "which compares");
}

#[test]
fn an_outage_ends_nothing() {
    let mut keeper = keeper();
    let mut now = start().after(DAY);
    for _ in 0..10_000 {
        match keeper.poll(now) {
            Poll::Do(_) => {
                keeper.finish(Outcome::Failed, now);
            }
            Poll::Wait(left) => now = now.after(left.unwrap()),
        }
    }
    assert_eq!(keeper.lease().subnet, own(Expiry::Unknown).subnet);
}

#[test]
fn our_own_echo_changes_nothing() {
    let mut keeper = keeper();
    let left = wait(&mut keeper, start());
    keeper.observe(&WatchEvent::Put(own(full(start()))), start());
    keeper.observe(&WatchEvent::Snapshot(vec![own(full(start()))]), start());
    assert_eq!(wait(&mut keeper, start()), left);
}

#[test]
fn two_hosts_with_one_address_do_not_chase_each_other() {
    let (mut a, mut b) = (keeper(), keeper());
    let mut now = start();
    let mut requests = 0;
    let mut other = b.lease().clone();
    other.attrs.backend_type = "host-gw".into();
    b.lease = other;
    for _ in 0..24 * 60 {
        for (one, two) in [(0, 1), (1, 0)] {
            let keepers = [&mut a, &mut b];
            if keepers[one].poll(now) == Poll::Do(Step::Renew) {
                requests += 1;
                keepers[one].finish(Outcome::Ours(full(now)), now);
                let written = keepers[one].lease().clone();
                keepers[two].observe(&WatchEvent::Put(written), now);
            }
        }
        if requests == 0 {
            let written = a.lease().clone();
            b.observe(&WatchEvent::Put(written), now);
        }
        now = now.after(Duration::from_secs(60));
    }
    assert!((10..=2 * 24 * 60).contains(&requests), "{requests}");
}

#[test]
fn a_short_life_given_by_a_stranger_is_lengthened_once_a_minute_at_most() {
    let mut keeper = keeper();
    let mut now = start();
    let mut requests = 0;
    for _ in 0..600 {
        let short = Expiry::At(now.wall + Duration::from_millis(1500));
        keeper.observe(&WatchEvent::Put(own(short)), now);
        if keeper.poll(now) == Poll::Do(Step::Renew) {
            requests += 1;
            keeper.finish(Outcome::Ours(full(now)), now);
        }
        now = now.after(Duration::from_secs(1));
    }
    assert!((9..=11).contains(&requests), "{requests}");
}

#[test]
fn bad_news_during_a_request_is_looked_into_after_it() {
    let mut keeper = keeper();
    let now = start().after(DAY);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
    keeper.observe(&WatchEvent::Removed(own(Expiry::Unknown).subnet), now);
    keeper.finish(Outcome::Ours(full(now)), now);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Renew));
    keeper.finish(Outcome::Lost, now);
    assert_eq!(keeper.poll(now), Poll::Do(Step::Create));
}
