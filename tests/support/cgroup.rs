//! A cgroup with a memory limit, of whichever version this machine has.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use super::skip;

/// A cgroup of the test's own. Removed on drop, when its processes have ended.
#[derive(Debug)]
pub struct MemoryCgroup {
    dir: PathBuf,
    files: &'static Files,
}

/// What a version calls the same things.
#[derive(Debug)]
struct Files {
    limit: &'static str,
    peak: &'static str,
    /// Has a line `oom_kill N`.
    events: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};

const V2: Files = Files { limit: "memory.max", peak: "memory.peak", events: "memory.events" };

impl MemoryCgroup {
    /// Makes one. Says loudly if this machine has no memory controller for us.
    pub fn new_or_skip(test: &str) -> Option<Self> {
        let name = format!("flanneld-test-{}", std::process::id());
        let made = [(v1_parent(), &V1), (v2_parent(), &V2)].into_iter().find_map(|(dir, files)| {
            let cgroup = Self { dir: dir?.join(&name), files };
            fs::create_dir(&cgroup.dir).ok()?;
            // All that is needed must be there: memory.peak came with Linux 5.19.
            let all = [files.limit, files.peak, files.events];
            all.iter().all(|file| cgroup.dir.join(file).exists()).then_some(cgroup)
        });
        if made.is_none() {
            skip(test, "a memory cgroup with a peak: version 1, or version 2 of Linux 5.19");
        }
        made
    }

    /// Takes in a process; what it uses from now on counts.
    pub fn enter(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// The most memory that was ever used, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.read(self.files.peak).trim().parse().unwrap()
    }

    /// Allows so much from now on.
    pub fn limit_bytes(&self, bytes: u64) {
        fs::write(self.dir.join(self.files.limit), bytes.to_string()).unwrap();
    }

    /// How many processes were killed for the lack of memory.
    pub fn oom_kills(&self) -> u64 {
        let events = self.read(self.files.events);
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap();
        kills.parse().unwrap()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Our own cgroup of version 1: a child has its limits and a lower one.
fn v1_parent() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.split_once(":memory:/"))?.1.to_owned();
    Some(mount_of("cgroup", "memory")?.join(path))
}

/// The root of version 2: below it alone may there be processes beside cgroups.
fn v2_parent() -> Option<PathBuf> {
    let root = mount_of("cgroup2", "")?;
    let enabled = fs::read_to_string(root.join("cgroup.subtree_control")).ok()?;
    enabled.split_whitespace().any(|controller| controller == "memory").then_some(root)
}

/// Where a file system of that type is mounted with that option.
fn mount_of(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, found, options) = (words.next()?, words.next()?, words.next()?);
        let has = option.is_empty() || options.split(',').any(|given| given == option);
        (found == kind && has).then(|| Path::new(path).to_owned())
    })
}
