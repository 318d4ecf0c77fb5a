//! Whoever can write the directory that is the store.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use tempfile::TempDir;

use super::leases::{COST, Last, leases};
use super::{ATTACK, Cost, LINES_PER_SECOND, LITTLE};
use crate::cluster::Cluster;
use crate::support::daemon::PATIENCE;
use crate::support::lab::{CONFIG, Lab};
use crate::support::root_or_skip;

const VALUE: &str = r#"{"PublicIP":"10.4.7.66","PublicIPv6":null}"#;

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

/// The time that a process has had of a CPU (proc_pid_stat(5)).
fn cpu_time(pid: u32) -> Duration {
    const TICKS_PER_SECOND: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap());
    Duration::from_millis(ticks.sum::<u64>() * 1_000 / TICKS_PER_SECOND)
}

#[test]
fn a_large_directory_that_changes_all_the_time_costs_little() {
    let test = "a_large_directory_that_changes_all_the_time_costs_little";
    if !root_or_skip(test) {
        return;
    }
    let (_store, cluster) = in_memory();
    for (name, value) in leases().take(10_000) {
        fs::write(subnets(&cluster).join(name), value).unwrap();
    }
    let file = subnets(&cluster).join("100.64.0.0-30");
    let pid = cluster.daemon(1).pid();
    let (lines, before, started) =
        (cluster.daemon(1).log().lines().count(), cpu_time(pid), Instant::now());
    let mut number = 0_u8;
    while started.elapsed() < 2 * ATTACK {
        number = number.wrapping_add(1);
        fs::write(&file, VALUE.replace("66", &number.to_string())).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let (lasted, used) = (started.elapsed(), cpu_time(pid) - before);
    let lines = cluster.daemon(1).log().lines().count() - lines;
    eprintln!("{test}: {used:?} of {lasted:?}, {lines} lines");
    assert!(used < lasted / 2, "{used:?} of {lasted:?}");
    assert!(lines <= LINES_PER_SECOND * 7, "{lines} lines\n{}", cluster.daemon(1).log());
}

/// Names that are no subnet's, or want to be something else in the log or elsewhere.
const NAMES: [&[u8]; 18] = [
    b"172.7.190.0-24%2f..%2f..%2fetc%2fpasswd",
    b"..%2f172.7.190.0-24",
    b"..\\172.7.190.0-24",
    b"172.7.190.0-24\nE1123 00:00:00.000000       1 forged.rs:1] forged",
    b"172.7.190.0-24\r\x1b[2J\x1b]0;forged\x07",
    b"\xe2\x80\xae42-0.091.7.271",
    b"\xe2\x80\xa8172.7.190.0-24",
    b"172.7.190.0-24\xe2\x80\x8b",
    b"\xef\xbc\x91\xef\xbc\x97\xef\xbc\x92.7.190.0-24",
    b"\xff\xfe172.7.190.0-24",
    b" 172.7.190.0-24",
    b"172.7.190.0-24 ",
    b"172.7.190.0-024",
    b"0172.7.190.0-24",
    b"172.7.190.0-33",
    b"172.7.190.0-24&fd00::1%eth0-64",
    b"-",
    &[b'x'; 255],
];

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
    // A gigabyte of nothing, and a megabyte of something.
    File::create(trap(13)).unwrap().set_len(1 << 30).unwrap();
    fs::write(trap(14), format!("{VALUE}{}", " ".repeat(1 << 20))).unwrap();
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
        fs::write(subnets(&cluster).join("172.7.199.0-24"), VALUE).unwrap();
        for host in 0..2 {
            cluster.daemon(host).wait_log("172.7.199.0/24 at 10.4.7.66 is up", PATIENCE);
        }
    });
    for host in 0..2 {
        let log = cluster.daemon(host).log();
        assert_eq!(log.matches("skipping").count(), strays, "{log}");
        // The pipe, the devices, the directory and the socket: none of them was opened.
        assert_eq!(log.matches("it is not a regular file").count(), 5, "{log}");
        let is_ours = |line: &str| !line.starts_with("E1123") && !line.contains(char::is_control);
        assert!(log.lines().all(is_ours), "{log}");
        assert!(!log.contains(['\u{202e}', '\u{2028}', '\u{200b}']), "{log}");
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), VALUE);
}
