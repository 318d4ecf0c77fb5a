//! A TCP relay into a lab: the etcd of a test listens on this machine's loopback, the lab's hosts
//! are elsewhere. What lies between a host and its store is done to the relay.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::lab::Lab;

/// Where the lab's switch answers.
const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 4, 7, 1);

/// A running relay; ends with the test's process.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Where the lab's hosts reach the target.
    pub address: SocketAddrV4,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    target: SocketAddrV4,
    up: AtomicBool,
    answer_delay_ms: AtomicU64,
    /// Every connection that was made: dead ones do no harm.
    connections: Mutex<Vec<TcpStream>>,
}

/// Makes `target` on this machine reachable from the lab's hosts; returns where.
pub fn into_lab(lab: &Lab, target: SocketAddrV4) -> SocketAddrV4 {
    Relay::start(lab, target).address
}

impl Relay {
    /// Makes `target` on this machine reachable from the lab's hosts.
    pub fn start(lab: &Lab, target: SocketAddrV4) -> Relay {
        if !lab.switch().ip("addr show br0").contains(&SWITCH.to_string()) {
            lab.switch().ip(&format!("addr add {SWITCH}/24 dev br0"));
        }
        let listener = lab.switch().listen(SocketAddrV4::new(SWITCH, 0));
        let address = SocketAddrV4::new(SWITCH, listener.local_addr().unwrap().port());
        let link = Arc::new(Link {
            target,
            up: AtomicBool::new(true),
            answer_delay_ms: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let serving = Arc::clone(&link);
        thread::spawn(move || serve(&listener, &serving));
        Relay { address, link }
    }

    /// Closes every connection, and each new one at once, until [`Relay::heal`].
    pub fn cut(&self) {
        self.link.up.store(false, Relaxed);
        self.reset();
    }

    /// Closes every connection; new ones are served.
    pub fn reset(&self) {
        for connection in self.link.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Serves again.
    pub fn heal(&self) {
        self.link.up.store(true, Relaxed);
    }

    /// Lets whatever the target says arrive so much later.
    pub fn delay_answers(&self, by: Duration) {
        self.link.answer_delay_ms.store(u64::try_from(by.as_millis()).unwrap(), Relaxed);
    }
}

fn serve(listener: &TcpListener, link: &Arc<Link>) {
    for near in listener.incoming().map_while(Result::ok) {
        // A target that is down closes the connection, as a reset from it would.
        let Ok(far) = TcpStream::connect(link.target) else { continue };
        let mut connections = link.connections.lock().unwrap();
        // Under the lock: a connection is either seen by `cut`, or sees that the relay is cut.
        if link.up.load(Relaxed) {
            connections.push(near.try_clone().unwrap());
            carry_requests(&near, &far);
            carry_answers(far, near, link);
        }
    }
}

/// Copies one direction in a thread of its own until either side ends.
fn carry_requests(near: &TcpStream, far: &TcpStream) {
    let (mut near, mut far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut near, &mut far);
        end(&near, &far);
    });
}

/// Copies the other one; each piece arrives later by what the link's delay was when it came.
fn carry_answers(far: TcpStream, mut near: TcpStream, link: &Arc<Link>) {
    let (pieces, later) = channel();
    let (mut source, link) = (far.try_clone().unwrap(), Arc::clone(link));
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = source.read(&mut buffer) {
            let delay = Duration::from_millis(link.answer_delay_ms.load(Relaxed));
            let piece = (Instant::now() + delay, buffer[..length].to_vec());
            if pieces.send(piece).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in later {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if near.write_all(&piece).is_err() {
                break;
            }
        }
        end(&far, &near);
    });
}

fn end(one: &TcpStream, other: &TcpStream) {
    for end in [one, other] {
        let _ = end.shutdown(Shutdown::Both);
    }
}
