//! A part of the daemon that dies by a bug ends all of it, with an error, so that whoever supervises
//! it starts a new one.
//!
//! There is no such bug to be had. Here the log has one, which panics in the part that it is told
//! of something by: a log is the process's, so the daemons run inside of this test, the only one.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use flanneld::cli::{self, Command};
use flanneld::daemon;
use support::daemon::PATIENCE;
use support::lab::{CONFIG, Lab, LabHost};
use support::root_or_skip;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Threads that warn of datagrams from strangers, and the task that warns of a lost subnet.
const BROKEN: [&str; 2] = ["flanneld::dataplane", "flanneld::subnet::keeper"];

/// A log that does not survive a warning of these.
struct BrokenLog;

impl<S: Subscriber> Layer<S> for BrokenLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let told_by = event.metadata();
        let breaks = *told_by.level() == Level::WARN
            && BROKEN.iter().any(|module| told_by.target().starts_with(module));
        assert!(!breaks, "the log is broken, as it shall be");
    }
}

/// Runs a daemon on a host while `disturb` is done to it, and returns how it ended.
fn run(lab: &Lab, host: &LabHost, disturb: impl Fn()) -> anyhow::Result<()> {
    let (store, subnet_file) = (lab.store_dir(CONFIG), host.subnet_file());
    let args: [OsString; 5] = [
        "--iface=eth0".into(),
        "--store-dir".into(),
        store.into(),
        "--subnet-file".into(),
        subnet_file.into(),
    ];
    let Ok(Command::Run(options)) = cli::parse(args, |_| None) else { panic!("no such flags") };
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| {
            host.netns.block_on(|| async move {
                tokio::time::timeout(PATIENCE, daemon::run(*options, Vec::new())).await
            })
        });
        while !daemon.is_finished() {
            disturb();
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon.join().unwrap().expect("it does not end")
    })
}

#[test]
fn a_part_that_dies_ends_the_daemon_with_an_error() {
    if !root_or_skip("a_part_that_dies_ends_the_daemon_with_an_error") {
        return;
    }
    let log = tracing_subscriber::registry().with(BrokenLog);
    tracing::subscriber::set_global_default(log).unwrap();
    let lab = Lab::new(2);
    let (host, other) = (lab.host(0), lab.host(1));

    let stranger = other.netns.udp(SocketAddrV4::new(other.address, 0));
    let ended = run(&lab, host, || {
        stranger.send_to(b"no lease", (host.address, 8285)).unwrap();
    });
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("a thread of the data path is dead"), "{error}");

    // Its lease is another host's, in one step, as the store's own writers do it.
    let subnets = lab.store_dir(CONFIG).join("subnets");
    let theirs = subnets.join(".theirs");
    let ended = run(&lab, other, || {
        if other.subnet_file().exists() {
            fs::write(&theirs, r#"{"PublicIP":"10.4.7.99","PublicIPv6":null}"#).unwrap();
            fs::rename(&theirs, subnets.join(other.lease())).unwrap();
        }
    });
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("the lease is not kept any more"), "{error}");
}
