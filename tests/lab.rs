//! The lab itself: what the tests of the whole daemon stand on.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;

use support::lab::{Lab, LinkModel};
use support::root_or_skip;
use support::traffic::{ping, tcp_transfer, udp_exchange};

/// Two hosts whose pods reach each other over plain routes, without any daemon.
fn routed_lab(mtu: u32, model: LinkModel) -> Lab {
    let mut lab = Lab::with_links(2, mtu, model);
    for number in 0..2 {
        let (own, peer) = (21 + number, 22 - number);
        let host = lab.host_mut(number);
        let env = format!("FLANNEL_SUBNET=172.7.{own}.1/24\nFLANNEL_MTU={mtu}\n");
        std::fs::write(host.subnet_file(), env).unwrap();
        host.add_pod();
        host.netns.ip(&format!("route add 172.7.{peer}.0/24 via 10.4.7.{peer}"));
    }
    lab
}

#[test]
fn hosts_and_pods_talk() {
    if !root_or_skip("hosts_and_pods_talk") {
        return;
    }
    for model in [LinkModel::Whole, LinkModel::Wire] {
        let lab = routed_lab(1500, model);
        let (a, b) = (lab.host(0), lab.host(1));
        assert_eq!(b.pod(0).address, Ipv4Addr::new(172, 7, 22, 2));
        ping(&a.netns, b.address, 3, "").unwrap();
        ping(&a.pod(0).netns, b.pod(0).address, 3, "-s 1472 -M do").unwrap();
        udp_exchange(a.pod(0).end(), b.pod(0).end(), &[0, 1, 1472, 1473, 9000, 65_507]);
        tcp_transfer(a.pod(0).end(), b.pod(0).end(), 3_000_001);
        tcp_transfer(b.end(), a.end(), 1);
    }
}

#[test]
fn a_failing_ping_is_told() {
    if !root_or_skip("a_failing_ping_is_told") {
        return;
    }
    let lab = routed_lab(1400, LinkModel::Whole);
    let text = ping(&lab.host(0).netns, lab.host(1).address, 1, "-s 1400 -M do").unwrap_err();
    assert!(text.contains("1 packets transmitted, 0 received"), "{text}");
}

#[test]
fn nothing_is_left_behind() {
    if !root_or_skip("nothing_is_left_behind") {
        return;
    }
    let names: Vec<String> = {
        let lab = routed_lab(1500, LinkModel::Whole);
        let mut sleeper = lab
            .host(0)
            .netns
            .command("sh")
            .args(["-c", "echo started; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(sleeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let names = lab.hosts().iter().map(|host| host.netns.name().to_owned()).collect();
        drop(lab);
        let status = sleeper.wait().unwrap();
        assert!(!status.success(), "it was not ended with its host");
        names
    };
    for name in names {
        assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "{name} is left");
    }
}
