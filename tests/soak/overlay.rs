//! Three hosts with a pod each on a directory store, and the flows between them.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::DATAGRAMS;
use crate::churn::Store;
use crate::datagram::Sequence;
use crate::drops::Drops;
use crate::flow::{self, Carrier, Flight};
use crate::report::{Handle, Outcome};
use crate::stop::Stop;
use crate::stream;
use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::lab::{CONFIG, Lab, LabHost, LinkModel};
use crate::support::netns::Netns;
use crate::support::traffic::{End, ping};
use crate::windows::Windows;

const HOSTS: u8 = 3;

/// A receive buffer with room for several bursts.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// A lease that is made last, to see that the daemons still follow the store.
const LAST_LEASE: (u8, u8) = (250, 250);

/// The hosts, which know each other.
pub(crate) struct Overlay {
    lab: Lab,
    store: Store,
    /// One on each host.
    daemons: Vec<Mutex<Running>>,
}

/// The daemon of a host.
struct Running {
    /// None while it is restarted.
    daemon: Option<Daemon>,
    /// Lines of its log that [`Overlay::news`] has given.
    told: usize,
}

impl Overlay {
    /// Starts the daemons at their default settings.
    pub(crate) fn new(model: LinkModel) -> Overlay {
        let mut lab = Lab::with_links(HOSTS, 1500, model);
        // A daemon that lost a race, or found others' subnets taken, draws from beyond the first
        // hundred otherwise: from where the leases of the churn are.
        let config =
            CONFIG.replace(r#""172.7.0.0/16","#, r#""172.7.0.0/16","SubnetMax":"172.7.100.0","#);
        assert_ne!(config, CONFIG);
        let store = lab.store_dir(&config);
        let daemons = lab.start_overlay(&store, |_| vec![]);
        lab.add_pods();
        let running = |daemon| Mutex::new(Running { daemon: Some(daemon), told: 0 });
        let daemons = daemons.into_iter().map(running).collect();
        let overlay = Overlay { lab, store: Store::at(store), daemons };
        for netns in overlay.namespaces() {
            // Echo sockets for root's group; and a client's port is free again after a second, or
            // a long soak runs out of ports.
            netns.sysctl("net.ipv4.ping_group_range", "0 0");
            netns.sysctl("net.ipv4.tcp_tw_reuse", "1");
            // What waits for a lost fragment must not take one of a later datagram whose
            // identifier is the same again.
            netns.sysctl("net.ipv4.ipfrag_time", "2");
        }
        overlay.ping_all();
        for host in overlay.hosts() {
            overlay.news(host);
        }
        overlay
    }

    /// The directory of the leases.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The numbers of all hosts.
    pub(crate) fn hosts(&self) -> Range<usize> {
        0..self.lab.hosts().len()
    }

    /// The host of that number.
    pub(crate) fn host(&self, number: usize) -> &LabHost {
        self.lab.host(number)
    }

    /// Asks the daemon of a host; none while it is restarted.
    pub(crate) fn ask<T>(&self, host: usize, ask: impl FnOnce(&Daemon) -> T) -> Option<T> {
        self.daemons[host].lock().unwrap().daemon.as_ref().map(ask)
    }

    /// Takes the daemon of a host, in order to end it.
    pub(crate) fn take(&self, host: usize) -> Daemon {
        self.daemons[host].lock().unwrap().daemon.take().expect("it runs")
    }

    /// Starts the next daemon of a host.
    pub(crate) fn spawn(&self, host: usize) {
        let daemon = self.host(host).spawn_daemon(&[&self.store.flag()], &[]);
        *self.daemons[host].lock().unwrap() = Running { daemon: Some(daemon), told: 0 };
    }

    /// What the daemon of a host has logged since this was last called.
    pub(crate) fn news(&self, host: usize) -> Vec<String> {
        let mut running = self.daemons[host].lock().unwrap();
        let log = running.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        let news: Vec<String> = log.lines().skip(running.told).map(str::to_owned).collect();
        running.told += news.len();
        news
    }

    /// Every direction between two hosts.
    pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
        let hosts = self.hosts();
        let all = hosts.clone().flat_map(|a| hosts.clone().map(move |b| (a, b)));
        all.filter(|(a, b)| a != b).collect()
    }

    /// The ends of a flow: the two hosts' pods, or the hosts' own ends of the tunnel.
    pub(crate) fn ends(&self, (from, to): (usize, usize), pods: bool) -> [End<'_>; 2] {
        [from, to].map(|host| {
            let host = self.lab.host(host);
            if pods { host.pod(0).end() } else { host.tunnel() }
        })
    }

    /// All namespaces.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        let hosts = self.lab.hosts().iter().flat_map(|host| [&host.netns, &host.pod(0).netns]);
        hosts.chain([self.lab.switch()])
    }

    /// What the kernel dropped so far.
    pub(crate) fn drops(&self) -> Drops {
        Drops::read(self.namespaces())
    }

    /// Every path, by its ends.
    pub(crate) fn paths(&self) -> Vec<[End<'_>; 2]> {
        let of_pair = |pair| [self.ends(pair, true), self.ends(pair, false)];
        self.pairs().into_iter().flat_map(of_pair).collect()
    }

    /// Pings along every path. Queues are in order, so what was sent before is through then.
    pub(crate) fn ping_all(&self) {
        for [from, to] in self.paths() {
            ping(from.netns, to.address, 1, "").unwrap();
        }
    }

    /// Makes one more lease, waits until all daemons know it, and returns their news.
    pub(crate) fn last_lease(&self) -> Vec<Vec<String>> {
        let (subnet, host) = LAST_LEASE;
        self.store.put(subnet, host).unwrap();
        let news = format!("peer 172.7.{subnet}.0/24 at 10.4.7.{host} is up");
        let known = |host| {
            self.ask(host, |daemon| daemon.wait_log(&news, PATIENCE));
            self.news(host)
        };
        self.hosts().map(known).collect()
    }

    /// Stops the daemons; returns their whole logs.
    pub(crate) fn stop(self) -> Vec<String> {
        let stop = |running: Mutex<Running>| {
            let ended = running.into_inner().unwrap().daemon.expect("it runs").stop();
            assert!(ended.status.success(), "{:?}\n{}", ended.status, ended.log);
            ended.log
        };
        self.daemons.into_iter().map(stop).collect()
    }
}

/// Starts a flow of TCP connections of the style number `kind`.
pub(crate) fn start_streams<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    kind: usize,
    flow: stream::Flow<'env>,
    [from, to]: [End<'env>; 2],
    stop: &'env Stop,
    windows: &'env Windows,
) -> [Handle<'scope>; 2] {
    let listener = to.netns.listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    let port = v4(listener.local_addr().unwrap()).port();
    let target = SocketAddrV4::new(to.address, port);
    let ended = Arc::new(AtomicBool::new(false));
    let outcome = move |counts: Result<stream::Counts, String>| {
        counts.map(|counts| Outcome::Streams(kind, counts))
    };
    let server = {
        let ended = Arc::clone(&ended);
        scope.spawn(move || outcome(stop.heed(flow.serve(&listener, &ended))))
    };
    let client = scope.spawn(move || {
        let connect = || std::net::TcpStream::connect_timeout(&target.into(), PATIENCE);
        let result = stop.heed(from.netns.enter(|| flow.ask(connect, stop, windows)));
        ended.store(true, Relaxed);
        // The server waits for one more: by loopback, because the overlay may have failed and its
        // addresses be gone. A server that has failed is not there any more.
        let _ = to.netns.connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        outcome(result)
    });
    [server, client]
}

/// Starts a flow of datagrams of the number `kind`.
pub(crate) fn start_datagrams<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    kind: usize,
    sequence: Sequence<'env>,
    carrier: Carrier,
    [from, to]: [End<'env>; 2],
    stop: &'env Stop,
    windows: &'env Windows,
) -> [Handle<'scope>; 2] {
    let here = SocketAddrV4::new(from.address, 0);
    let (sender, receiver, target) = match carrier {
        Carrier::Udp => {
            let receiver = to.netns.udp(SocketAddrV4::new(to.address, 0));
            let target = v4(receiver.local_addr().unwrap());
            (Arc::new(from.netns.udp(here)), Arc::new(receiver), target)
        }
        Carrier::Echo => {
            let socket = Arc::new(echo_socket(from.netns, here));
            (Arc::clone(&socket), socket, SocketAddrV4::new(to.address, 0))
        }
    };
    SockRef::from(&*receiver).set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
    let blame = move |error: String| format!("{} to {target}: {error}", DATAGRAMS[kind].0);
    let flight = Arc::new(Flight::default());
    let taking = {
        let flight = Arc::clone(&flight);
        scope.spawn(move || {
            let result =
                flow::receive(sequence, carrier, &receiver, &flight, windows).map_err(blame);
            stop.heed(result).map(|counts| Outcome::Datagrams(kind, counts))
        })
    };
    let sending = scope.spawn(move || {
        let result =
            flow::send(sequence, carrier, &sender, target, &flight, stop, windows).map_err(blame);
        stop.heed(result).map(|()| Outcome::Sent)
    });
    [taking, sending]
}

/// A socket for echo requests and their replies: the kernel keeps an identifier for it.
fn echo_socket(netns: &Netns, local: SocketAddrV4) -> UdpSocket {
    netns.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).unwrap();
        socket.bind(&local.into()).unwrap();
        socket.into()
    })
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { unreachable!("bound to IPv4") };
    address
}
