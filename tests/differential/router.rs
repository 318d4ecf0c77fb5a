//! A kernel that forwards from one TUN device to another.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::Stdio;

use flanneld::dataplane::offload::limits::{IP_MAX_BYTES, VNET_HDR_BYTES};
use flanneld::dataplane::offload::virtio::VirtioNetHdr;
use flanneld::dataplane::sys::tun::{Tun, TunOffload, TunWriter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::support::netns::Netns;
use crate::targets::Script;

/// Of both devices, in bytes.
pub(crate) const MTU: u16 = 9000;

/// How long a packet may take through a loaded machine.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// How long the kernel holds a packet to merge others to it, at most, in nanoseconds.
const GRO_FLUSH_TIMEOUT_NS: &str = "1000000";

pub(crate) struct Router {
    netns: Netns,
    output: Tun,
}

impl Router {
    /// A router whose output takes superpackets or does not.
    pub(crate) fn new(output: TunOffload) -> Router {
        let netns = Netns::new("router");
        // No router solicitations between the packets.
        netns.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        netns.sysctl("net.ipv4.ip_forward", "1");
        for place in ["all", "default"] {
            netns.sysctl(&format!("net.ipv4.conf.{place}.rp_filter"), "0");
        }
        let output = netns.enter(|| Tun::create("out", output, 1)).unwrap();
        // Room for the segments of any superpacket.
        netns.ip(&format!("link set out mtu {MTU} txqueuelen 10000 up"));
        netns.ip("route add 10.5.2.0/24 dev out");
        Router { netns, output }
    }

    /// A device whose packets are forwarded to the output as they are written.
    pub(crate) fn input(&self) -> Tun {
        let input = self.netns.enter(|| Tun::create("in%d", TunOffload::TsoUso, 1)).unwrap();
        assert_eq!(input.offload(), TunOffload::TsoUso);
        self.netns.ip(&format!("link set {} mtu {MTU} up", input.name()));
        input
    }

    /// The same, but packets that fit together are merged first.
    pub(crate) fn merging_input(&self) -> MergingInput {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name("gro").platform_config(|platform| {
            platform.napi(true).ensure_root_privileges(false);
        });
        let device = self.netns.enter(|| tun::create(&configuration)).unwrap();
        self.netns.exec("ethtool -K gro gro on rx-udp-gro-forwarding on");
        // Else each write is passed on before the next.
        let mut tee = self.netns.command("tee");
        tee.arg("/sys/class/net/gro/gro_flush_timeout").stdin(Stdio::piped());
        let mut tee = tee.stdout(Stdio::null()).spawn().unwrap();
        tee.stdin.take().unwrap().write_all(GRO_FLUSH_TIMEOUT_NS.as_bytes()).unwrap();
        assert!(tee.wait().unwrap().success());
        self.netns.ip(&format!("link set gro mtu {MTU} up"));
        MergingInput(device)
    }

    pub(crate) fn write(&self, input: &Tun, hdr: &VirtioNetHdr, packet: &[u8]) {
        TunWriter::new().gather(input, 0, &hdr.to_bytes(), [packet]).write().unwrap();
    }

    /// What comes out next.
    pub(crate) fn read(&self) -> (VirtioNetHdr, Vec<u8>) {
        let queue = self.output.queue(0);
        let ready = poll(&mut [PollFd::new(&queue, PollFlags::IN)], Some(&PATIENCE)).unwrap();
        assert_eq!(ready, 1, "nothing came out for {} s", PATIENCE.tv_sec);
        let mut buffer = vec![0; VNET_HDR_BYTES + IP_MAX_BYTES];
        let bytes = self.output.read(0, &mut buffer).unwrap();
        let (hdr, packet) = buffer[..bytes].split_first_chunk().unwrap();
        (VirtioNetHdr::parse(hdr), packet.to_vec())
    }

    /// Panics if anything comes out that was not read: nothing may come before one more packet.
    pub(crate) fn assert_nothing_more(&self, input: &Tun) {
        let packet = Script::new(true).play(&[0, 1, 0]).remove(0);
        self.write(input, &VirtioNetHdr::NONE, &packet);
        assert_eq!(self.read().1, super::forwarded(&packet));
    }
}

/// A TUN device with NAPI.
pub(crate) struct MergingInput(tun::Device);

impl MergingInput {
    pub(crate) fn write(&mut self, packet: &[u8]) {
        assert_eq!(self.0.write(packet).unwrap(), packet.len());
    }
}
