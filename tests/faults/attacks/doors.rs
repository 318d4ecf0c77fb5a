//! Whoever can reach the daemon's own doors: HTTP and the admin socket.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use super::{LITTLE, again_and_again};
use crate::cluster::Cluster;
use crate::support::admin::{HEALTHZ, HEALTHZ_FLAGS, read_answer, socket, status, until};
use crate::support::root_or_skip;
use crate::support::traffic::Noise;

/// Connections that are served at a time (`MAX_CONNECTIONS` in src/admin/http.rs), at each of the
/// two doors.
const CONNECTIONS: usize = 64;

/// Descriptors that the daemon has for moments besides: one that it has just accepted at each door,
/// those of a directory and a file that it reads.
const FOR_MOMENTS: usize = 10;

/// How many descriptors a daemon has.
fn descriptors(cluster: &Cluster, host: usize) -> usize {
    fs::read_dir(format!("/proc/{}/fd", cluster.daemon(host).pid())).unwrap().count()
}

#[test]
fn clients_that_are_slow_or_talk_nonsense_harm_nobody() {
    let test = "clients_that_are_slow_or_talk_nonsense_harm_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&["--healthz-ip=0.0.0.0", "--healthz-port=8471"]);
    cluster.let_attacker_in();
    let http = SocketAddrV4::new(cluster.lab.host(1).address, 8471);
    let before = descriptors(&cluster, 1);
    let healthy = || {
        let mut probe = cluster.lab.switch().connect(http).unwrap();
        probe.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        read_answer(&mut probe).map(|answer| answer.status)
    };
    let netns = cluster.lab.switch();
    let (mut idle, mut admin, mut most) = (Vec::new(), Vec::new(), 0);
    cluster.withstand(test, LITTLE, || {
        // All that connect, from the one host, and then half a request each, byte by byte.
        netns.enter(|| (0..1_000).for_each(|_| idle.push(TcpStream::connect(http).unwrap())));
        admin.extend((0..200).map(|_| UnixStream::connect(socket(cluster.lab.host(1))).unwrap()));
        for byte in b"GET /metrics HTTP/1.1\r\nX-Slow: " {
            idle.iter_mut().for_each(|stream| drop(stream.write_all(&[*byte])));
            admin.iter_mut().for_each(|stream| drop(stream.write_all(&[*byte])));
            most = most.max(descriptors(&cluster, 1));
        }
        assert_eq!(healthy(), Some(200), "the slow ones keep out a probe");
        assert_eq!(status(cluster.lab.host(1), &[]).status.code(), Some(0), "and root");
        // Then requests of endless headers, of noise, and whole ones, as many as can be.
        let (mut noise, mut garbage) = (Noise::new(9), vec![0; 32 * 1024]);
        let mut number = 0;
        netns.enter(|| {
            again_and_again(|| {
                number += 1;
                let mut stream = TcpStream::connect(http).unwrap();
                noise.fill(&mut garbage);
                let _ = match number % 4 {
                    0 => stream.write_all(&garbage),
                    1 => {
                        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Long: ");
                        stream.write_all(&[b'a'; 32 * 1024])
                    }
                    2 => stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"),
                    _ => stream
                        .write_all(b"POST /status HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n"),
                };
                // An answer, a reset, or nothing.
                let _ = stream.read(&mut [0; 1024]);
            })
        });
        most = most.max(descriptors(&cluster, 1));
    });
    eprintln!("{test}: {before} descriptors before, {most} at most");
    assert!(most <= before + 2 * CONNECTIONS + FOR_MOMENTS, "{most} descriptors, {before} before");
    assert_eq!(healthy(), Some(200));
    drop((idle, admin));
    until("descriptors", || descriptors(&cluster, 1), |now| *now <= before);
}

/// Every method of RFC 9110 and RFC 5789 but those that only read, and two that are none.
const METHODS: [&str; 9] =
    ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "STOP", "get"];

/// Nothing can be changed by whoever asks, nor can anybody ask where it was not allowed.
#[test]
fn the_doors_are_narrow() {
    if !root_or_skip("the_doors_are_narrow") {
        return;
    }
    let cluster = Cluster::new(&HEALTHZ_FLAGS);
    cluster.let_attacker_in();
    let host = cluster.lab.host(1);
    let outside = SocketAddrV4::new(host.address, HEALTHZ.port());
    let refused = cluster.lab.switch().connect(outside).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED), "{refused}");
    assert_eq!(fs::metadata(socket(host)).unwrap().permissions().mode() & 0o777, 0o600);
    let listening = host.netns.exec("ss -Hltn");
    assert_eq!(listening.lines().count(), 1, "{listening}");

    for path in ["/", "/status", "/metrics", "/healthz", "/readyz", "/config", "/stop"] {
        for method in METHODS {
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{{}}");
            let mut http = host.netns.connect(HEALTHZ).unwrap();
            http.write_all(request.as_bytes()).unwrap();
            let mut admin = UnixStream::connect(socket(host)).unwrap();
            admin.write_all(request.as_bytes()).unwrap();
            let answers = [first_line(&mut http), first_line(&mut admin)];
            let denied =
                |line: &String| [" 400 ", " 404 ", " 405 "].iter().any(|code| line.contains(code));
            assert!(answers.iter().all(denied), "{method} {path}: {answers:?}");
        }
    }
}

/// The first line of an answer.
fn first_line(stream: &mut impl Read) -> String {
    let mut answer = Vec::new();
    // What was sent besides may make a reset of its end.
    let mut buffer = [0; 1024];
    while !answer.contains(&b'\n') {
        match stream.read(&mut buffer) {
            Ok(bytes) if bytes > 0 => answer.extend_from_slice(&buffer[..bytes]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}
