//! `flanneld check`: examines this host, before an installation or after, and says what is wrong
//! and what to do about it.
//!
//! One file for each group of findings: [`machine`] (TUN, capabilities, the kernel's help, clock),
//! [`network`] (external interface, port, forwarding, rules, what overlaps the overlay), [`store`]
//! (config and leases), [`peers`] (who answers, and to packets of which size). Nothing is changed,
//! and a daemon that runs goes on undisturbed. Every wait has an end.
#![forbid(unsafe_code)]

mod machine;
mod network;
mod peers;
mod ping;
mod port;
mod report;
mod store;

pub use self::report::{Finding, Report, Severity};
use crate::cli::Options;
use crate::host::link::Link;
use crate::host::netlink::Host;

/// Examines the host for a daemon with these options. Must be called within a tokio runtime.
pub async fn run(options: &Options) -> Report {
    let mut report = Report::default();
    machine::examine(options, &mut report);
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            report.failure("kernel", error.to_string(), "use a kernel with rtnetlink");
            return report;
        }
    };
    let device = running_device(&host, options, &mut report).await;
    let external = network::external(&host, options, &mut report).await;
    let stored = store::examine(options, external.as_ref(), device.as_ref(), &mut report).await;
    network::forwarding(external.as_ref(), &mut report);
    if let Some(stored) = &stored {
        network::rules(options, &stored.config, &mut report).await;
        network::overlaps(&host, stored, device.as_ref(), &mut report).await;
    }
    if let Some(external) = &external {
        network::port(external, stored.as_ref(), device.as_ref(), &mut report);
        if let Some(stored) = &stored {
            peers::examine(external, stored, device.as_ref(), &mut report).await;
        }
    }
    report
}

/// The device of the daemon that runs here, if one does.
async fn running_device(host: &Host, options: &Options, report: &mut Report) -> Option<Link> {
    match host.tuns_named(&options.tun_name).await {
        Ok(devices) => {
            let device = devices.into_iter().find(|device| device.carrier);
            match &device {
                Some(device) => report.ok("daemon", format!("runs: it holds {}", device.name)),
                None => report.note("daemon", "does not run on this host", None),
            }
            device
        }
        Err(error) => {
            report.failure("kernel", error.to_string(), "run flanneld check as root");
            None
        }
    }
}
