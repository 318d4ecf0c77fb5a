//! A TCP relay into a lab: the etcd of a test listens on this machine's loopback, the lab's hosts
//! are elsewhere.
#![forbid(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::thread;

use super::lab::Lab;

/// Where the lab's switch answers.
const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 4, 7, 1);

/// Makes `target` on this machine reachable from the lab's hosts; returns where. Ends with the
/// test's process.
pub fn into_lab(lab: &Lab, target: SocketAddrV4) -> SocketAddrV4 {
    if !lab.switch().ip("addr show br0").contains(&SWITCH.to_string()) {
        lab.switch().ip(&format!("addr add {SWITCH}/24 dev br0"));
    }
    let listener = lab.switch().listen(SocketAddrV4::new(SWITCH, 0));
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            // A target that is down closes the connection, as a reset from it would.
            if let Ok(far) = TcpStream::connect(target) {
                join(&near, &far);
                join(&far, &near);
            }
        }
    });
    SocketAddrV4::new(SWITCH, port)
}

/// Copies one direction in a thread of its own until either side ends.
fn join(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        for end in [&from, &to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    });
}
