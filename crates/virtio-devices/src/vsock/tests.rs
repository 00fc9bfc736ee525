// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections as a guest and as programs of the host see them.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;

use proptest::prelude::*;
use vm_memory::GuestAddress;
use vmm_sys_util::tempdir::TempDir;

use super::credit::BUFFER_SIZE;
use super::header::{Header, Op, SIZE};
use super::*;
use crate::testing::{
    BREAKAGES, Driver, EVENT_IDX, assert_descriptors_below, open_descriptors, readable, writable,
};
use crate::{Chain, Events};

mod device;
mod exhausted;
mod threadless;

const DATA: u64 = Driver::DATA;
/// Where packets are put together, and where received ones are.
const OUT: u64 = DATA;
const IN: u64 = DATA + 0x8_0000;
/// Buffers for received packets, and how long each is.
const BUFFERS: u64 = 32;
const BUFFER: u32 = 0x4000;

/// A directory of a test's own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("s")
    }
}

struct Guest {
    driver: Driver,
}

impl Guest {
    const CID: u64 = 3;

    fn start(vsock: &mut dyn VirtioDevice, features: u64) -> Self {
        let mut driver = Driver::start(vsock, features, 2 << 20).unwrap();
        for i in 0..BUFFERS {
            driver.queues[0].add(&[writable(IN + i * u64::from(BUFFER), BUFFER)]);
        }
        Self { driver }
    }

    fn header(op: Op, guest: u32, host: u32) -> Header {
        Header {
            source_cid: Self::CID,
            destination_cid: 2,
            source_port: guest,
            destination_port: host,
            length: 0,
            kind: 1,
            op: Some(op),
            flags: 0,
            buffer_size: 1 << 20,
            forwarded: 0,
        }
    }

    /// Sends a packet, its data in three pieces as a driver may cut it.
    fn send(&mut self, header: Header, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.driver.write(OUT, &Header { length, ..header }.bytes());
        self.driver.write(OUT + 64, data);
        let third = length / 3;
        self.driver.queues[1].add(&[
            readable(OUT, SIZE),
            readable(OUT + 64, third),
            readable(OUT + 64 + u64::from(third), third),
            readable(OUT + 64 + 2 * u64::from(third), length - 2 * third),
        ]);
        self.driver.queues[1].wait_used();
    }

    fn op(&mut self, op: Op, guest: u32, host: u32) {
        self.send(Self::header(op, guest, host), &[]);
    }

    /// The next packet.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, written) = self.driver.queues[0].wait_used();
        let address = self.driver.queues[0].address(head);
        let bytes = self.driver.read(address, written as usize);
        self.driver.queues[0].add(&[writable(address, BUFFER)]);
        let (header, data) = bytes.split_first_chunk().unwrap();
        let header = Header::parse(header);
        assert_eq!(header.length as usize, data.len());
        assert_eq!((header.source_cid, header.destination_cid), (2, Self::CID));
        assert!(header.kind == 1 || header.op == Some(Op::Reset));
        (header, data.to_vec())
    }

    /// The next packet, which is of that kind and between these ports.
    fn expect(&mut self, op: Op, guest: u32, host: u32) -> Header {
        let (header, data) = self.receive();
        assert_eq!((header.op, header.destination_port, header.source_port), (Some(op), guest, host));
        assert!(data.is_empty() || op == Op::Data);
        header
    }
}

fn vsock(place: &Place) -> Vsock {
    Vsock::new(GuestCid::new(Guest::CID).unwrap(), place.socket()).unwrap()
}

/// Connects a host program to a guest's port, up to `OK`. The host's port.
fn connect(place: &Place, guest: &mut Guest, port: u32) -> (UnixStream, u32) {
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.destination_port), (Some(Op::Request), port));
    assert_eq!(header.buffer_size, BUFFER_SIZE);
    guest.op(Op::Response, port, header.source_port);
    let mut answer = vec![0; format!("OK {}\n", header.source_port).len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, format!("OK {}\n", header.source_port).as_bytes());
    (stream, header.source_port)
}

/// Connects the guest to a program that listens at the host's `port`.
fn connect_to(place: &Place, guest: &mut Guest, from: u32, port: u32) -> UnixStream {
    let listener = UnixListener::bind(place.path(&format!("s_{port}"))).unwrap();
    guest.op(Op::Request, from, port);
    guest.expect(Op::Response, from, port);
    let (stream, _) = listener.accept().unwrap();
    fs::remove_file(place.path(&format!("s_{port}"))).unwrap();
    stream
}

#[test]
fn a_host_program_talks_to_the_guest() {
    for features in [0, EVENT_IDX] {
        let place = Place::new();
        let mut device = vsock(&place);
        let mut guest = Guest::start(&mut device, features);
        let (mut stream, host) = connect(&place, &mut guest, 52);
        stream.write_all(b"hello, guest").unwrap();
        let (header, data) = guest.receive();
        assert_eq!((header.op, &data[..]), (Some(Op::Data), &b"hello, guest"[..]));
        guest.send(Guest::header(Op::Data, 52, host), b"hello, host");
        let mut got = [0; 11];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello, host");
    }
}

#[test]
fn the_guest_talks_to_a_host_program() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    let mut stream = connect_to(&place, &mut guest, 1000, 80);
    guest.send(Guest::header(Op::Data, 1000, 80), b"GET");
    let mut got = [0; 3];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"GET");
    stream.write_all(b"200").unwrap();
    let (header, data) = guest.receive();
    assert_eq!((header.op, &data[..], header.forwarded), (Some(Op::Data), &b"200"[..], 3));
}

#[test]
fn nobody_listens() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    guest.op(Op::Request, 1000, 81);
    guest.expect(Op::Reset, 1000, 81);
    for op in [Op::Response, Op::Data, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        guest.op(op, 1000, 81);
        guest.expect(Op::Reset, 1000, 81);
    }
    // Neither an answer to a reset, nor to what comes from somebody else.
    guest.op(Op::Reset, 1000, 81);
    guest.send(Header { source_cid: 4, ..Guest::header(Op::Request, 1000, 81) }, &[]);
    guest.send(Header { destination_cid: 5, ..Guest::header(Op::Request, 1000, 81) }, &[]);
    guest.send(Header { kind: 2, ..Guest::header(Op::Reset, 1001, 81) }, &[]);
    guest.send(Header { kind: 2, ..Guest::header(Op::Request, 1001, 81) }, &[]);
    assert_eq!(guest.expect(Op::Reset, 1001, 81).kind, 2);
    // And a host program whose port nobody listens to in the guest.
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    stream.write_all(b"CONNECT 53\n").unwrap();
    let (header, _) = guest.receive();
    guest.op(Op::Reset, 53, header.source_port);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_megabyte_each_way_is_whole() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, EVENT_IDX);
    let (stream, host) = connect(&place, &mut guest, 52);
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();

    let mut theirs = stream.try_clone().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || theirs.write_all(&sent).unwrap());
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let (header, data) = guest.receive();
        match header.op {
            Some(Op::Data) => got.extend(data),
            Some(Op::CreditRequest) => {}
            other => panic!("{other:?}"),
        }
        let forwarded = u32::try_from(got.len()).unwrap();
        guest.send(
            Header { forwarded, buffer_size: 0x1_0000, ..Guest::header(Op::CreditUpdate, 52, host) },
            &[],
        );
    }
    assert!(got == bytes);
    writer.join().unwrap();

    // The host program reads late: the guest sends what it may, and hears when it may go on.
    let mut told = 0_u32;
    let mut sent = 0_u32;
    let mut reader = None;
    while (sent as usize) < bytes.len() {
        let room = BUFFER_SIZE - (sent - told);
        if room < 50_000 {
            if reader.is_none() {
                let mut theirs = stream.try_clone().unwrap();
                let length = bytes.len();
                reader = Some(std::thread::spawn(move || {
                    let mut got = vec![0; length];
                    theirs.read_exact(&mut got).unwrap();
                    got
                }));
            }
            let (header, _) = guest.receive();
            assert_eq!(header.op, Some(Op::CreditUpdate));
            told = header.forwarded;
            continue;
        }
        let length = (bytes.len() - sent as usize).min(50_000);
        let part = &bytes[sent as usize..][..length];
        let forwarded = 1 << 20;
        guest.send(Header { forwarded, ..Guest::header(Op::Data, 52, host) }, part);
        sent += u32::try_from(length).unwrap();
    }
    assert!(reader.expect("it had to wait").join().unwrap() == bytes);
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    let (stream, host) = connect(&place, &mut guest, 52);
    let (other, other_host) = connect(&place, &mut guest, 53);
    for _ in 0..100 {
        guest.send(Guest::header(Op::Data, 52, host), &[0; 60_000]);
        if guest.driver.queues[0].peek_used() > 4 {
            break;
        }
    }
    loop {
        let (header, _) = guest.receive();
        if header.op == Some(Op::Reset) {
            assert_eq!(header.destination_port, 52);
            break;
        }
        assert_eq!(header.op, Some(Op::CreditUpdate));
    }
    drop(stream);
    // The other one goes on.
    guest.send(Guest::header(Op::Data, 53, other_host), b"x");
    let mut got = [0];
    (&other).read_exact(&mut got).unwrap();
}

#[test]
fn a_guest_without_credit_gets_nothing_and_is_asked() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    let (mut stream, host) = connect(&place, &mut guest, 52);
    guest.send(Header { buffer_size: 4, ..Guest::header(Op::CreditUpdate, 52, host) }, &[]);
    stream.write_all(b"123456").unwrap();
    let (header, data) = guest.receive();
    assert_eq!((header.op, &data[..]), (Some(Op::Data), &b"1234"[..]));
    guest.expect(Op::CreditRequest, 52, host);
    // The same answer is no reason to ask again: what comes next is an answer to the guest's own question.
    let full = |op| Header { buffer_size: 4, ..Guest::header(op, 52, host) };
    for _ in 0..3 {
        guest.send(full(Op::CreditUpdate), &[]);
        guest.send(full(Op::CreditRequest), &[]);
        guest.expect(Op::CreditUpdate, 52, host);
    }
    guest.send(Header { buffer_size: 4, forwarded: 4, ..Guest::header(Op::CreditUpdate, 52, host) }, &[]);
    let (_, data) = guest.receive();
    assert_eq!(data, b"56");
    guest.op(Op::CreditRequest, 52, host);
    guest.expect(Op::CreditUpdate, 52, host);
}

#[test]
fn a_limit_holds_for_all_pieces_together() {
    let pieces = [0x100, 0x200, 0x300].map(|at| Segment { address: GuestAddress(at), length: 10 });
    for (limit, lengths) in
        [(0, &[][..]), (4, &[4]), (10, &[10]), (15, &[10, 5]), (30, &[10, 10, 10]), (u32::MAX, &[10, 10, 10])]
    {
        let wanted = pieces.iter().zip(lengths).map(|(&piece, &length)| Segment { length, ..piece });
        assert!(limited(pieces.into_iter(), limit).eq(wanted), "{limit}");
    }
}

#[test]
fn ends_are_told() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);

    // The host program half closes, the guest goes on sending, the host program closes.
    let (mut stream, host) = connect(&place, &mut guest, 52);
    stream.write_all(b"bye").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().1, b"bye");
    assert_eq!(guest.expect(Op::Shutdown, 52, host).flags, 2);
    guest.send(Guest::header(Op::Data, 52, host), b"more");
    let mut got = [0; 4];
    stream.read_exact(&mut got).unwrap();
    drop(stream);
    assert_eq!(guest.expect(Op::Shutdown, 52, host).flags, 3);
    guest.op(Op::Reset, 52, host);

    // The guest half closes, and then closes.
    let (mut stream, host) = connect(&place, &mut guest, 52);
    guest.send(Guest::header(Op::Data, 52, host), b"last");
    // Said twice, and with a flag that there is not, it is the same.
    for flags in [2, 0x12] {
        guest.send(Header { flags, ..Guest::header(Op::Shutdown, 52, host) }, &[]);
    }
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last");
    stream.write_all(b"still").unwrap();
    assert_eq!(guest.receive().1, b"still");
    guest.send(Header { flags: 3, ..Guest::header(Op::Shutdown, 52, host) }, &[]);
    guest.expect(Op::Reset, 52, host);
    assert!(stream.write_all(b"nobody").is_err());

    // The guest wants no more, and goes on sending until the host program closes.
    let (mut stream, host) = connect(&place, &mut guest, 52);
    guest.send(Header { flags: 1, ..Guest::header(Op::Shutdown, 52, host) }, &[]);
    assert!(stream.write_all(b"unwanted").is_err());
    guest.send(Guest::header(Op::Data, 52, host), b"wanted");
    let mut got = [0; 6];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"wanted");
    drop(stream);
    assert_eq!(guest.expect(Op::Shutdown, 52, host).flags, 3);
    guest.op(Op::Reset, 52, host);

    // The guest resets.
    let (mut stream, host) = connect(&place, &mut guest, 52);
    guest.op(Op::Reset, 52, host);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // What comes for it now is for nobody.
    guest.op(Op::CreditUpdate, 52, host);
    guest.expect(Op::Reset, 52, host);

    // Data after the guest has said that there is none.
    let (_stream, host) = connect(&place, &mut guest, 52);
    guest.send(Header { flags: 2, ..Guest::header(Op::Shutdown, 52, host) }, &[]);
    guest.send(Guest::header(Op::Data, 52, host), b"x");
    guest.expect(Op::Reset, 52, host);
}

#[test]
fn what_was_sent_before_the_end_arrives_though_the_reader_is_slow() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    let (mut stream, host) = connect(&place, &mut guest, 52);
    for i in 0..5 {
        guest.send(Guest::header(Op::Data, 52, host), &[i; 50_000]);
    }
    guest.send(Header { flags: 3, ..Guest::header(Op::Shutdown, 52, host) }, &[]);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let expected: Vec<u8> = (0..5).flat_map(|i| [i; 50_000]).collect();
    assert!(all == expected);
    while guest.receive().0.op != Some(Op::Reset) {}
}

#[test]
fn many_connections_at_once() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, EVENT_IDX);
    let mut streams: Vec<_> = (0..100).map(|i| connect(&place, &mut guest, 1000 + i)).collect();
    for (i, (stream, _)) in streams.iter_mut().enumerate() {
        stream.write_all(&u32::try_from(i).unwrap().to_le_bytes()).unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let (header, data) = guest.receive();
        assert_eq!(header.destination_port, 1000 + u32::from_le_bytes(data.try_into().unwrap()));
        assert!(seen.insert(header.destination_port));
    }
    drop(streams);
    let mut over = std::collections::BTreeSet::new();
    while over.len() < 100 {
        let (header, _) = guest.receive();
        if header.flags == 3 {
            over.insert(header.destination_port);
        }
    }
}

#[test]
fn a_host_program_that_says_something_else_is_hung_up_on() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    for greeting in [&b"GET / HTTP/1.1\r\n"[..], b"CONNECT x\n", &[b'C'; 100]] {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        let _ = stream.write_all(greeting);
        // Closed, or reset where something was left unread.
        assert!(!matches!(stream.read(&mut [0]), Ok(length) if length > 0));
    }
    // A slow one, and those that say nothing, are no trouble.
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(place.socket()).unwrap()).collect();
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    for byte in b"CONNECT 7\nearly" {
        stream.write_all(&[*byte]).unwrap();
    }
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.destination_port), (Some(Op::Request), 7));
    guest.op(Op::Response, 7, header.source_port);
    let mut got = Vec::new();
    while got.len() < 5 {
        got.extend(guest.receive().1);
    }
    assert_eq!(got, b"early");
    // Of 101 that were about to say which port they want, the last 64 could go on.
    for (i, mut stream) in silent.into_iter().enumerate() {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(&mut [0]).ok(), (i < 37).then_some(0), "{i}");
    }
}

#[test]
fn what_a_guest_may_not_say_in_the_state_of_a_connection_resets_it() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    let ops = [Op::Request, Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest];
    for op in ops {
        // It was asked for a connection.
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        stream.write_all(b"CONNECT 52\n").unwrap();
        let host = guest.receive().0.source_port;
        if op != Op::Response {
            guest.op(op, 52, host);
            guest.expect(Op::Reset, 52, host);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{op:?}");
        }
    }
    for op in [Op::Request, Op::Response] {
        // It has one.
        let (mut stream, host) = connect(&place, &mut guest, 52);
        guest.op(op, 52, host);
        guest.expect(Op::Reset, 52, host);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{op:?}");
    }
}

#[test]
fn a_host_program_that_is_gone_is_told_as_a_reset_when_something_is_lost() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut guest = Guest::start(&mut device, 0);
    let reset = |guest: &mut Guest, host: u32| loop {
        let (header, _) = guest.receive();
        assert_eq!((header.destination_port, header.source_port), (52, host));
        if header.op == Some(Op::Reset) {
            break;
        }
    };
    // It has not read what the guest has sent: the socket says so when it is closed.
    let (stream, host) = connect(&place, &mut guest, 52);
    guest.send(Guest::header(Op::Data, 52, host), b"unread");
    drop(stream);
    reset(&mut guest, host);
    // What the guest has sent waits.
    let (stream, host) = connect(&place, &mut guest, 52);
    for _ in 0..5 {
        guest.send(Guest::header(Op::Data, 52, host), &[0; 50_000]);
    }
    drop(stream);
    reset(&mut guest, host);
    // The guest sends something.
    let (stream, host) = connect(&place, &mut guest, 52);
    drop(stream);
    assert_eq!(guest.expect(Op::Shutdown, 52, host).flags, 2);
    assert_eq!(guest.expect(Op::Shutdown, 52, host).flags, 3);
    guest.send(Guest::header(Op::Data, 52, host), b"late");
    reset(&mut guest, host);
}

#[test]
fn a_guest_that_takes_no_answers_has_to_wait_and_loses_none() {
    let place = Place::new();
    let mut device = vsock(&place);
    // No buffers to receive with.
    let mut driver = Driver::start(&mut device, 0, 2 << 20).unwrap();
    let total = 600_u32;
    for i in 0..total {
        let at = OUT + u64::from(i % 256) * 64;
        if i >= 256 {
            // It stalls once as many answers wait as may.
            driver.transport.wait_quiet(|| driver.queues[1].peek_used());
            break;
        }
        driver.write(at, &Guest::header(Op::Data, i, 1).bytes());
        driver.queues[1].add(&[readable(at, SIZE)]);
    }
    for _ in 0..256 {
        driver.queues[1].wait_used();
    }
    for i in 256..300 {
        let at = OUT + u64::from(i % 256_u32) * 64;
        driver.write(at, &Guest::header(Op::Data, i, 1).bytes());
        driver.queues[1].add(&[readable(at, SIZE)]);
    }
    driver.transport.wait_quiet(|| driver.queues[1].peek_used());
    assert_eq!(driver.queues[1].peek_used(), 256, "those wait");
    for i in 0..300 {
        driver.queues[0].add(&[writable(IN, BUFFER)]);
        driver.queues[0].wait_used();
        let header = Header::parse(&driver.read(IN, SIZE as usize).try_into().unwrap());
        assert_eq!((header.op, header.destination_port), (Some(Op::Reset), i));
    }
}
