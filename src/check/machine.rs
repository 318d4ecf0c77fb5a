//! What the kernel has and allows: TUN devices, capabilities, help with UDP, the clock.

use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::Report;
use crate::cli::{OffloadMode, Options};
use crate::daemon::tun_offload;
use crate::dataplane::sys::clock;
use crate::dataplane::sys::socket::{SOCKET_BUFFER_BYTES, Sharing, UdpSocket};
use crate::dataplane::sys::tun::{Tun, TunError, TunOffload};
use crate::host::kernel;

const TUN: &str = "/dev/net/tun";

/// The name of the device that is made to see what the kernel gives, and removed at once.
const SCRATCH_DEVICE: &str = "flprobe%d";

/// Examines it.
pub(super) fn examine(options: &Options, report: &mut Report) {
    capabilities(report);
    if opens(report) {
        device(options, report);
    }
    socket(options, report);
    clock(report);
}

fn capabilities(report: &mut Report) {
    let effective = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.effective,
        Err(errno) => {
            report.note("rights", format!("the capabilities cannot be read: {errno}"), None);
            return;
        }
    };
    if !effective.contains(CapabilitySet::NET_ADMIN) {
        report.failure(
            "rights",
            "CAP_NET_ADMIN is missing: no device, address, route or rule can be set",
            "run flanneld as root; in a container add the capability: docker run --cap-add \
             NET_ADMIN",
        );
    } else if !effective.contains(CapabilitySet::NET_RAW) {
        report.note(
            "rights",
            "CAP_NET_RAW is missing: the peers cannot be pinged, and iptables-legacy refuses to \
             work",
            Some("run flanneld as root; in a container: docker run --cap-add NET_RAW"),
        );
    } else {
        report.ok("rights", "CAP_NET_ADMIN and CAP_NET_RAW");
    }
}

fn opens(report: &mut Report) -> bool {
    match rustix::fs::open(TUN, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => true,
        Err(Errno::NOENT) => {
            report.failure(
                "tun",
                format!("{TUN} does not exist"),
                format!(
                    "modprobe tun; if it is still missing: mkdir -p /dev/net && mknod {TUN} c 10 \
                     200; in a container pass it in: docker run --device {TUN}"
                ),
            );
            false
        }
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
            report.failure(
                "tun",
                format!("{TUN} may not be opened: {errno}"),
                format!(
                    "chmod 0666 {TUN}, and run flanneld as root; in a container allow the device: \
                     docker run --device {TUN}"
                ),
            );
            false
        }
        Err(errno) => {
            let text = format!("{TUN} cannot be opened: {errno}");
            report.failure("tun", text, "modprobe tun, or use a kernel with CONFIG_TUN");
            false
        }
    }
}

/// Makes a device as the daemon would, under another name.
fn device(options: &Options, report: &mut Report) {
    let most = tun_offload(options.offload);
    match Tun::create(SCRATCH_DEVICE, most, options.queues) {
        Ok(tun) => {
            let (queues, given) = (tun.queues(), tun.offload());
            let offload = match given {
                TunOffload::None => "no offload",
                TunOffload::Tso => "TSO",
                TunOffload::TsoUso => "TSO and USO",
            };
            let text = format!("a device can be made: {queues} queues, {offload}");
            if given < most {
                let fix = "packets are carried all the same, at a higher cost; Linux 6.2 has all";
                report.note("tun", format!("{text}, not all that --offload asks for"), Some(fix));
            } else {
                report.ok("tun", text);
            }
        }
        // The capability's own finding says more.
        Err(TunError::NotPermitted { .. }) => {
            let fix = "run flanneld as root, or add CAP_NET_ADMIN";
            report.failure("tun", "no device may be made", fix);
        }
        Err(error) => report.failure(
            "tun",
            error.to_string(),
            "see the kernel's log (dmesg); with a kernel older than 3.8, --queues=1",
        ),
    }
}

/// Opens a UDP socket on the loopback as the daemon would.
fn socket(options: &Options, report: &mut Report) {
    let release = kernel::release();
    let wish = options.udp_wish(&release);
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let socket = match UdpSocket::bind(address, wish, Sharing::Never) {
        Ok(socket) => socket,
        Err(error) => {
            let fix = "set the loopback up: ip link set lo up";
            return report.failure("udp", error.to_string(), fix);
        }
    };
    segmentation(options, &release, report);
    let missing: Vec<&str> = [
        ("UDP_SEGMENT (Linux 4.18)", wish.gso && !socket.segments()),
        ("UDP_GRO (Linux 5.0)", wish.gro && !socket.merges()),
    ]
    .into_iter()
    .filter_map(|(name, missing)| missing.then_some(name))
    .collect();
    if !missing.is_empty() {
        let text = format!("Linux {release} has no {}", missing.join(", no "));
        report.note("udp", text, Some("packets are carried all the same, at a higher cost"));
    } else if options.offload == OffloadMode::Off {
        report.ok("udp", format!("a socket can be opened (Linux {release})"));
    } else {
        report.ok("udp", format!("Linux {release} cuts and merges datagrams as wished"));
    }
    // The kernel counts its own book-keeping in.
    let granted = socket.receive_buffer_bytes() / 2;
    if granted < SOCKET_BUFFER_BYTES {
        report.warning(
            "udp",
            format!(
                "a socket's receive buffer is {} KiB instead of {} KiB: bursts get lost",
                granted / 1024,
                SOCKET_BUFFER_BYTES / 1024
            ),
            format!("sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES}, or add CAP_NET_ADMIN"),
        );
    }
}

/// What a kernel of this release makes of trains of datagrams, if that is known to be wrong.
fn segmentation(options: &Options, release: &str, report: &mut Report) {
    if !kernel::breaks_udp_segmentation(release) {
        return;
    }
    let text = format!("Linux {release} breaks trains of datagrams (UDP_SEGMENT)");
    match options.udp_gso {
        Some(true) => report.warning(
            "udp",
            format!("{text}, and --udp-gso lets it"),
            "use Linux 7.1.5, or remove --udp-gso, unless the distribution has mended this one",
        ),
        Some(false) => {}
        None => report.note(
            "udp",
            format!("{text}: they go out one by one, at a higher cost"),
            Some("use Linux 7.1.5; if the distribution has mended this one, set --udp-gso"),
        ),
    }
}

fn clock(report: &mut Report) {
    match clock::is_synchronised() {
        Ok(true) => report.ok("clock", "kept right by NTP or the like"),
        Ok(false) => report.note(
            "clock",
            "nothing keeps it right. Leases in etcd do not care; certificates, and the leases of a \
             directory store, do",
            Some("run chrony, systemd-timesyncd or ntpd"),
        ),
        Err(error) => report.note("clock", format!("its state cannot be read: {error}"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Severity;
    use super::*;
    use crate::cli::{self, Command};

    #[test]
    fn a_kernel_that_breaks_trains_is_found() {
        let found = |args: &[&str], release| {
            let Ok(Command::Run(options)) = cli::parse(args.iter().map(Into::into), |_| None)
            else {
                panic!("{args:?}")
            };
            let mut report = Report::default();
            segmentation(&options, release, &mut report);
            report.findings.first().map(|finding| finding.severity)
        };
        assert_eq!(found(&[], "7.1.4"), Some(Severity::Note));
        assert_eq!(found(&["--udp-gso"], "7.1.4"), Some(Severity::Warning));
        assert_eq!(found(&["--udp-gso=false"], "7.1.4"), None);
        assert_eq!(found(&["--offload=off"], "7.1.4"), None);
        assert_eq!(found(&[], "7.1.5"), None);
    }
}
