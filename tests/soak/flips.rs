//! A soak that finds nothing must be able to find something: single bytes are changed on their
//! way, and the receivers notice.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::thread;

use socket2::SockRef;

use crate::DATAGRAMS;
use crate::datagram::{Ledger, NUMBERED_BYTES, Sequence};
use crate::flow::{self, Carrier, Flight, UNDER_WAY};
use crate::pattern::{PIECE_BYTES, Pattern, Wrong};
use crate::stop::Stop;
use crate::stream::{Flow, STYLES};
use crate::windows::Windows;

/// The datagram that something happens to.
const SPOILT: u64 = 20;

const LOCALHOST: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

#[test]
fn a_stream_names_the_first_wrong_byte() {
    let pattern = Pattern::new(7);
    let mut bytes = Vec::new();
    let mut source = pattern.stream(1);
    while bytes.len() < 3 * PIECE_BYTES {
        bytes.extend_from_slice(source.take(10_000));
    }
    for at in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 77] {
        let mut got = bytes.clone();
        got[at] ^= 0x10;
        let mut wanted = pattern.stream(1);
        let found = got.chunks(1_000).find_map(|chunk| wanted.check(chunk).err());
        let expected = Wrong { offset: at as u64, wanted: bytes[at], got: got[at] };
        assert_eq!(found, Some(expected));
    }
    // Bytes that were left out, or that belong to another stream, are wrong as well.
    assert!(pattern.stream(1).check(&bytes[PIECE_BYTES..]).is_err());
    assert!(pattern.stream(2).check(&bytes).is_err());
    assert_eq!(pattern.stream(1).check(&bytes), Ok(()));
}

#[test]
fn a_byte_flipped_on_its_way_breaks_a_connection() {
    const AT: u64 = 12_345;
    let (pattern, stop, ended) = (Pattern::new(7), Stop::default(), AtomicBool::new(false));
    let flow = Flow { style: &STYLES[2], pattern: &pattern, key: 3 };
    let server = TcpListener::bind(LOCALHOST).unwrap();
    let relay = TcpListener::bind(LOCALHOST).unwrap();
    let (far, near) = (server.local_addr().unwrap(), relay.local_addr().unwrap());
    thread::scope(|scope| {
        let served = scope.spawn(|| {
            let served = flow.serve(&server, &ended);
            drop(server);
            served
        });
        scope.spawn(|| flip_stream(&relay, far, AT));
        let asked = flow.ask(|| TcpStream::connect(near), &stop, &Windows::default());
        let failure = served.join().unwrap().unwrap_err();
        assert!(failure.contains(&format!("CORRUPT: byte {AT} is ")), "{failure}");
        assert!(asked.is_err(), "the client did not notice that its server gave up");
    });
}

/// Passes one connection on, to the far end only, with a bit of one byte flipped.
fn flip_stream(relay: &TcpListener, far: SocketAddr, at: u64) {
    let (near, _) = relay.accept().unwrap();
    let far = TcpStream::connect(far).unwrap();
    let mut position = 0;
    let mut buffer = [0; 1_000];
    while let Ok(length @ 1..) = (&near).read(&mut buffer) {
        let flip = at.checked_sub(position).and_then(|at| buffer[..length].get_mut(at as usize));
        if let Some(byte) = flip {
            *byte ^= 1;
        }
        position += length as u64;
        if (&far).write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = near.shutdown(Shutdown::Both);
}

#[test]
fn every_flipped_byte_of_a_datagram_is_noticed() {
    let pattern = Pattern::new(7);
    for (name, shape, _) in &DATAGRAMS {
        let sequence = Sequence { shape, pattern: &pattern, key: 5 };
        let mut ledger = Ledger::default();
        let mut datagram = Vec::new();
        sequence.write(0, &mut datagram);
        assert!(datagram.len() >= NUMBERED_BYTES, "{name}: choose another key");
        for at in 0..datagram.len() {
            let mut flipped = datagram.clone();
            flipped[at] ^= 0x80;
            ledger.enter(&sequence, 64, &flipped);
            assert_eq!(ledger.counts.corrupt, at as u64 + 1, "{name}: byte {at}");
        }
        let corrupt = datagram.len() as u64;
        for cut in [&datagram[1..], &datagram[..datagram.len() - 1], &[]] {
            ledger.enter(&sequence, 64, cut);
        }
        assert_eq!(ledger.counts.corrupt, corrupt + 3, "{name}: cut");
        // Not sent yet, so it cannot have arrived.
        ledger.enter(&sequence, 0, &datagram);
        assert_eq!(ledger.counts.corrupt, corrupt + 4, "{name}: from nowhere");
        assert_eq!(ledger.counts.received, 0);
        ledger.enter(&sequence, 64, &datagram);
        ledger.enter(&sequence, 64, &datagram);
        assert_eq!((ledger.counts.received, ledger.counts.duplicates), (1, 1));
    }
}

#[test]
fn the_ledger_tells_late_ones_from_lost_ones() {
    let (pattern, (_, shape, _)) = (Pattern::new(7), &DATAGRAMS[0]);
    let sequence = Sequence { shape, pattern: &pattern, key: 5 };
    let mut ledger = Ledger::default();
    // 3 and 4 are late, 7 is lost.
    for number in [0, 1, 2, 5, 4, 6, 3, 8, 9] {
        let mut datagram = Vec::new();
        sequence.write(number, &mut datagram);
        ledger.enter(&sequence, 10, &datagram);
    }
    let counts = crate::datagram::Counts { sent: 10, ..ledger.counts };
    assert_eq!((counts.received, counts.lost(), counts.reordered), (9, 1, 2));
    assert_eq!((counts.duplicates, counts.corrupt), (0, 0));
}

#[test]
fn a_short_datagram_is_recognised_after_a_long_gap() {
    let (pattern, (_, shape, _)) = (Pattern::new(7), &DATAGRAMS[0]);
    let sequence = Sequence { shape, pattern: &pattern, key: 5 };
    let mut ledger = Ledger::default();
    let mut datagram = Vec::new();
    let short = (5_000..).find(|&number| {
        datagram.clear();
        sequence.write(number, &mut datagram);
        datagram.len() == NUMBERED_BYTES - 1
    });
    ledger.enter(&sequence, short.unwrap() + 1, &datagram);
    assert_eq!((ledger.counts.received, ledger.counts.corrupt), (1, 0));
}

/// Sends datagrams over a relay that passes on those for which `touch` says so, as it left them.
fn relayed(
    windows: &Windows,
    stop: &Stop,
    mut touch: impl FnMut(u64, &mut [u8]) -> bool + Send,
) -> crate::datagram::Counts {
    let (pattern, flight) = (Pattern::new(7), Flight::default());
    let sequence = Sequence { shape: &DATAGRAMS[2].1, pattern: &pattern, key: 4 };
    let socket = || {
        let socket = UdpSocket::bind(LOCALHOST).unwrap();
        // Room for a whole burst: nothing else may be lost.
        SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        socket
    };
    let (sender, relay, receiver) = (socket(), socket(), socket());
    let SocketAddr::V4(target) = relay.local_addr().unwrap() else { unreachable!() };
    let far = receiver.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| flow::send(sequence, Carrier::Udp, &sender, target, &flight, stop, windows));
        scope.spawn(|| {
            let mut buffer = [0; 65_536];
            for number in 0.. {
                let length = relay.recv(&mut buffer).unwrap();
                if length == 0 {
                    break;
                }
                if touch(number, &mut buffer[..length]) {
                    relay.send_to(&buffer[..length], far).unwrap();
                }
            }
        });
        let counts = flow::receive(sequence, Carrier::Udp, &receiver, &flight, windows).unwrap();
        sender.send_to(&[], target).unwrap();
        counts
    })
}

#[test]
fn a_byte_flipped_on_its_way_spoils_one_datagram() {
    let (stop, windows) = (Stop::default(), Windows::default());
    let counts = relayed(&windows, &stop, |number, datagram| {
        if number == SPOILT {
            datagram[datagram.len() / 2] ^= 1;
            stop.set();
        }
        true
    });
    assert!(counts.sent > SPOILT, "{counts:?}");
    assert_eq!((counts.corrupt, counts.lost(), counts.excused), (1, 1, 0), "{counts:?}");
}

#[test]
fn a_datagram_lost_before_a_fault_is_not_excused() {
    let (stop, windows) = (Stop::default(), Windows::default());
    let later = 40 * SPOILT;
    let counts = relayed(&windows, &stop, |number, _| {
        if number == SPOILT {
            // What was under way with it has landed, or is held for lost, before the fault.
            thread::sleep(2 * UNDER_WAY);
        }
        if number == later {
            windows.open(false);
            stop.set();
        }
        number != SPOILT && number != later
    });
    assert_eq!((counts.corrupt, counts.lost(), counts.excused), (0, 2, 1), "{counts:?}");
}
