//! Whoever can write the directory that is the store.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;

use super::leases::{COST, Last, leases};
use super::names::{NAMES, VALUE, assert_each_is_told_once};
use super::{ATTACK, Cost, LINES_PER_SECOND, LITTLE};
use crate::cluster::Cluster;
use crate::support::daemon::PATIENCE;
use crate::support::lab::{CONFIG, Lab};
use crate::support::root_or_skip;

fn subnets(cluster: &Cluster) -> PathBuf {
    Path::new(&cluster.store).join("subnets")
}

/// A store in memory, where many files take little time, and the cluster on it.
fn in_memory() -> (TempDir, Cluster) {
    let store = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(store.path().join("config"), CONFIG).unwrap();
    let cluster = Cluster::in_directory(Lab::new(2), store.path(), |_| vec![]);
    (store, cluster)
}

#[test]
fn a_hundred_thousand_leases_in_a_directory_harm_nobody() {
    let test = "a_hundred_thousand_leases_in_a_directory_harm_nobody";
    if !root_or_skip(test) {
        return;
    }
    let (_store, cluster) = in_memory();
    cluster.let_attacker_in();
    let (honest, full) = (subnets(&cluster), Path::new(&cluster.store).join("full"));
    // Written aside, so that they come and go at once.
    fs::create_dir(&full).unwrap();
    for entry in fs::read_dir(&honest).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), full.join(entry.file_name())).unwrap();
    }
    for (name, value) in leases() {
        fs::write(full.join(name), value).unwrap();
    }
    let exchange = || renameat_with(CWD, &full, CWD, &honest, RenameFlags::EXCHANGE).unwrap();
    let last = Last::new(&cluster);
    cluster.withstand(test, COST, || {
        let started = Instant::now();
        exchange();
        last.wait_until_known(&cluster);
        let kib = cluster.daemon(1).memory_kib("RssAnon");
        eprintln!("{test}: known after {:?}, with {kib} KiB in all", started.elapsed());
        exchange();
        let started = Instant::now();
        last.wait_until_forgotten(&cluster);
        eprintln!("{test}: forgotten after {:?}", started.elapsed());
    });
}

/// Whoever reads the leases of a directory store, seen by the kernel's notices.
struct Readers {
    notices: OwnedFd,
    is_reading: bool,
    times: usize,
}

impl Readers {
    fn watch(store: &str) -> Readers {
        let notices = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        let wanted = WatchFlags::OPEN | WatchFlags::CLOSE_NOWRITE;
        inotify::add_watch(&notices, store, wanted).unwrap();
        Readers { notices, is_reading: false, times: 0 }
    }

    /// Whether somebody is reading them now.
    fn are_reading(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut notices = inotify::Reader::new(&self.notices, &mut buffer);
        loop {
            match notices.next() {
                Ok(notice) if notice.file_name() == Some(c"subnets") => {
                    self.is_reading = notice.events().contains(ReadFlags::OPEN);
                    self.times += usize::from(self.is_reading);
                }
                Ok(_) => {}
                Err(Errno::WOULDBLOCK) => return self.is_reading,
                Err(error) => panic!("inotify: {error}"),
            }
        }
    }
}

/// The time that a process has had of a CPU (proc_pid_stat(5)).
fn cpu_time(pid: u32) -> Duration {
    const TICKS_PER_SECOND: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap());
    Duration::from_millis(ticks.sum::<u64>() * 1_000 / TICKS_PER_SECOND)
}

/// The longer it takes to read the directory, the rarer that is done: so it holds of any machine
/// that few of the changes come while the daemon reads.
#[test]
fn a_large_directory_that_changes_all_the_time_costs_little() {
    let test = "a_large_directory_that_changes_all_the_time_costs_little";
    if !root_or_skip(test) {
        return;
    }
    let (_store, mut cluster) = in_memory();
    // One reader, so that it is known who reads.
    cluster.take(0).stop();
    for (name, value) in leases().take(10_000) {
        fs::write(subnets(&cluster).join(name), value).unwrap();
    }
    let file = subnets(&cluster).join("100.64.0.0-30");
    let daemon = cluster.daemon(1);
    let mut readers = Readers::watch(&cluster.store);
    let (lines, before, started) =
        (daemon.log().lines().count(), cpu_time(daemon.pid()), Instant::now());
    let (mut changes, mut meanwhile, mut rounds) = (0, 0, Vec::new());
    while rounds.len() < 3 || started.elapsed() < 2 * ATTACK {
        assert!(started.elapsed() < PATIENCE, "read {} times only", rounds.len());
        fs::write(&file, VALUE.replace("66", &(changes % 256).to_string())).unwrap();
        if readers.times > rounds.len() {
            rounds.push((changes, meanwhile));
        }
        changes += 1;
        meanwhile += u32::from(readers.are_reading());
        std::thread::sleep(Duration::from_millis(5));
    }
    let (lasted, used) = (started.elapsed(), cpu_time(daemon.pid()) - before);
    let lines = daemon.log().lines().count() - lines;
    // From the beginning of the first reading to that of the last.
    let [first, .., last] = rounds[..] else { unreachable!("there are three") };
    let (changes, meanwhile): (u32, u32) = (last.0 - first.0, last.1 - first.1);
    eprintln!(
        "{test}: read {} times, meanwhile {meanwhile} of {changes} changes; \
         CPU {used:?} of {lasted:?}, {lines} lines",
        rounds.len()
    );
    assert!(meanwhile < changes / 3, "{meanwhile} of {changes} changes");
    let allowed = LINES_PER_SECOND * lasted.as_secs_f64().ceil() as usize;
    assert!(lines <= allowed, "{lines} lines\n{}", daemon.log());
}

/// So many things that are no plain files of a sensible size.
const TRAPS: usize = 15;

/// Puts them under names of subnets.
fn put_traps(subnets: &Path, outside: &Path) {
    let trap = |number: usize| {
        assert!(number < TRAPS);
        subnets.join(format!("172.7.{}.0-24", 180 + number))
    };
    let targets =
        ["/etc/passwd", "/dev/zero", "/dev/full", "/proc/self/mem", "..", "172.7.185.0-24"];
    for (number, target) in targets.iter().enumerate() {
        symlink(target, trap(number)).unwrap();
    }
    symlink(outside, trap(6)).unwrap();
    symlink(trap(8), trap(7)).unwrap();
    for (number, kind, device) in [
        (8, FileType::Fifo, 0),
        // zero, and the terminal of whoever opens it.
        (9, FileType::CharacterDevice, makedev(1, 5)),
        (10, FileType::CharacterDevice, makedev(5, 0)),
    ] {
        mknodat(CWD, trap(number), kind, Mode::from_raw_mode(0o666), device).unwrap();
    }
    fs::create_dir(trap(11)).unwrap();
    drop(UnixListener::bind(trap(12)).unwrap());
    // A gigabyte of nothing, and a megabyte of something: moved there, as nobody shall see them grow.
    let unfinished = subnets.join(".huge");
    File::create(&unfinished).unwrap().set_len(1 << 30).unwrap();
    fs::rename(&unfinished, trap(13)).unwrap();
    fs::write(&unfinished, format!("{VALUE}{}", " ".repeat(1 << 20))).unwrap();
    fs::rename(&unfinished, trap(14)).unwrap();
}

#[test]
fn names_and_files_that_mean_harm_are_left_alone() {
    let test = "names_and_files_that_mean_harm_are_left_alone";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let outside = Path::new(&cluster.store).join("outside");
    fs::write(&outside, VALUE).unwrap();
    // One line for each thing that is no lease, but for what is hidden.
    let strays = TRAPS + NAMES.iter().filter(|name| !name.starts_with(b".")).count();
    cluster.withstand(test, Cost { lines: strays, ..LITTLE }, || {
        for name in NAMES {
            fs::write(subnets(&cluster).join(OsStr::from_bytes(name)), VALUE).unwrap();
        }
        put_traps(&subnets(&cluster), &outside);
        // Behind all that, an honest lease is seen as ever.
        cluster.write_lease("172.7.199.0-24", "10.4.7.66");
        for host in 0..2 {
            cluster.daemon(host).wait_log("172.7.199.0/24 at 10.4.7.66 is up", PATIENCE);
        }
    });
    for host in 0..2 {
        let log = cluster.daemon(host).log();
        assert_each_is_told_once(&log, strays);
        // The pipe, the devices, the directory and the socket: none of them was opened.
        assert_eq!(log.matches("it is not a regular file").count(), 5, "{log}");
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), VALUE);
}
