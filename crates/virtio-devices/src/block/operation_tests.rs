// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::sys::storage::IoVec;

const MEMORY: usize = 4 << 20;
const HEADER_AT: u64 = 0x1000;
const STATUS_AT: u64 = 0x2000;
const DATA_AT: u64 = 0x10_0000;

struct Rig {
    memory: GuestMemoryMmap,
    geometry: Geometry,
    operation: Operation,
}

fn segment(address: u64, length: u32) -> Segment {
    Segment { address: GuestAddress(address), length }
}

impl Rig {
    fn new(align: usize) -> Self {
        Self::on(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(), align)
    }

    fn on(memory: GuestMemoryMmap, align: usize) -> Self {
        let geometry = Geometry {
            sectors: 1 << 20,
            block: u32::try_from(align).unwrap().max(512),
            physical: 4096,
            align,
            readonly: false,
            serial: [0; SERIAL],
            queues: 1,
        };
        let operation = Operation::new(memory.clone());
        Self { memory, geometry, operation }
    }

    fn parse(&mut self, kind: u32, sector: u64, data: &[Segment], durable: bool) -> Parsed {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(HEADER_AT)).unwrap();
        let (mut readable, mut writable) = (vec![segment(HEADER_AT, HEADER)], Vec::new());
        if kind == VIRTIO_BLK_T_IN {
            writable.extend(data)
        } else {
            readable.extend(data)
        }
        writable.push(segment(STATUS_AT, 1));
        let chain = Chain::of(7, &readable, &writable);
        self.operation.parse(&chain, &self.memory, &self.geometry, durable).unwrap()
    }

    /// A range in the data, for discard and write zeroes.
    fn range(&self, at: u64, sector: u64, sectors: u32, flags: u32) -> Segment {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        segment(at, 16)
    }

    /// Answers each step as the script says, and says what the steps were and what came of it.
    fn run(&mut self, script: &[Result<usize, i32>]) -> Vec<String> {
        let mut told = Vec::new();
        for &result in script {
            told.push(describe(self.operation.step()));
            if let Progress::Done(status) = self.operation.finish_step(result) {
                told.push(format!("{status:?}"));
            }
        }
        told
    }
}

fn bytes(parts: &[IoVec]) -> usize {
    parts.iter().map(|part| part.slice().len()).sum()
}

fn describe(step: Step<'_>) -> String {
    match step {
        Step::Read { to, offset } => format!("read {} at {offset}", bytes(to)),
        Step::Write { from, offset, durable } => {
            format!("{} {} at {offset}", if durable { "write through" } else { "write" }, bytes(from))
        }
        Step::Sync => "sync".to_owned(),
        Step::Punch { offset, length } => format!("punch {length} at {offset}"),
        Step::Zero { offset, length } => format!("zero {length} at {offset}"),
    }
}

#[test]
fn a_transfer_goes_on_until_it_is_done_or_fails() {
    use libc::{EAGAIN, EINTR, EIO, ENOSPC};
    type Script = (&'static str, u32, &'static [Result<usize, i32>], &'static [&'static str], u32);
    let table: [Script; 8] = [
        ("all at once", 0, &[Ok(8192)], &["read 8192 at 1024", "Ok"], 8193),
        (
            "in pieces",
            0,
            &[Ok(512), Ok(7000), Ok(680)],
            &["read 8192 at 1024", "read 7680 at 1536", "read 680 at 8536", "Ok"],
            8193,
        ),
        (
            "the end of the file",
            0,
            &[Ok(512), Ok(0)],
            &["read 8192 at 1024", "read 7680 at 1536", "IoError"],
            512,
        ),
        ("a bad sector", 0, &[Err(EIO)], &["read 8192 at 1024", "IoError"], 0),
        (
            "interrupted",
            0,
            &[Err(EINTR), Err(EAGAIN), Ok(8192)],
            &["read 8192 at 1024", "read 8192 at 1024", "read 8192 at 1024", "Ok"],
            8193,
        ),
        ("a write", 1, &[Ok(8192)], &["write 8192 at 1024", "Ok"], 1),
        ("a full file system", 1, &[Err(ENOSPC)], &["write 8192 at 1024", "IoError"], 1),
        (
            "a file system that fills up",
            1,
            &[Ok(4096), Err(ENOSPC)],
            &["write 8192 at 1024", "write 4096 at 5120", "IoError"],
            1,
        ),
    ];
    for (what, kind, script, expected, written) in table {
        let mut rig = Rig::new(1);
        let data = [segment(DATA_AT, 4096), segment(DATA_AT + 0x5000, 4096)];
        assert_eq!(rig.parse(kind, 2, &data, false), Parsed::Start, "{what}");
        let told = rig.run(script);
        assert_eq!(told, expected, "{what}");
        assert_eq!((rig.operation.is_read(), rig.operation.is_write()), (kind == 0, kind == 1));
        let status = if told.last().unwrap() == "Ok" { Status::Ok } else { Status::IoError };
        assert_eq!(rig.operation.answer(&rig.memory, status).unwrap(), written, "{what}");
        let byte: u8 = rig.memory.read_obj(GuestAddress(STATUS_AT)).unwrap();
        assert_eq!(byte, status.byte(), "{what}");
        assert_eq!(rig.operation.head(), 7);
    }
}

/// What was done before has nothing to do with it: a request is used again for request after request.
#[test]
fn what_needs_no_image_is_no_read_and_its_length_is_what_was_written() {
    let mut rig = Rig::new(1);
    rig.geometry.serial[..2].copy_from_slice(b"ab");
    let data = |length| [segment(DATA_AT, length)];
    let table: [(&str, u32, &[Segment], Status, u32); 6] = [
        ("a serial number", VIRTIO_BLK_T_GET_ID, &data(20), Status::Ok, 21),
        ("a part of it", VIRTIO_BLK_T_GET_ID, &data(3), Status::Ok, 4),
        ("more room than it has", VIRTIO_BLK_T_GET_ID, &data(32), Status::Ok, 20),
        ("an unknown request", 77, &[], Status::Unsupported, 1),
        ("an unknown request with room for data", 77, &data(512), Status::Unsupported, 0),
        ("a read beyond the end", VIRTIO_BLK_T_IN, &data(512), Status::IoError, 0),
    ];
    for (what, kind, writable, expected, written) in table {
        for before in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH] {
            let moves = if before == VIRTIO_BLK_T_FLUSH { vec![] } else { data(512).to_vec() };
            rig.parse(before, 0, &moves, false);
            rig.run(&[Ok(512)]);
            let mut header = kind.to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend((1_u64 << 40).to_le_bytes());
            rig.memory.write_slice(&header, GuestAddress(HEADER_AT)).unwrap();
            let writable = [writable, &[segment(STATUS_AT, 1)]].concat();
            let chain = Chain::of(7, &[segment(HEADER_AT, HEADER)], &writable);
            let parsed = rig.operation.parse(&chain, &rig.memory, &rig.geometry, false).unwrap();
            assert_eq!(parsed, Parsed::Done(expected), "{what}");
            let counted = (rig.operation.is_read(), rig.operation.is_write());
            assert_eq!(counted, (kind == VIRTIO_BLK_T_IN, false), "{what}");
            assert_eq!(rig.operation.answer(&rig.memory, expected).unwrap(), written, "{what}");
        }
    }
}

#[test]
fn flushes_and_write_through_wait_for_stable_storage() {
    let mut rig = Rig::new(1);
    assert_eq!(rig.parse(VIRTIO_BLK_T_FLUSH, 0, &[], false), Parsed::Start);
    assert_eq!(rig.run(&[Ok(0)]), ["sync", "Ok"]);
    rig.parse(VIRTIO_BLK_T_FLUSH, 0, &[], false);
    assert_eq!(rig.run(&[Err(libc::EIO)]), ["sync", "IoError"], "a flush that fails must not be called done");
    rig.parse(VIRTIO_BLK_T_OUT, 0, &[segment(DATA_AT, 512)], true);
    assert_eq!(rig.run(&[Ok(512)]), ["write through 512 at 0", "Ok"]);
    let range = rig.range(DATA_AT, 8, 8, 0);
    rig.parse(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[range], true);
    assert_eq!(rig.run(&[Ok(0), Ok(0)]), ["zero 4096 at 4096", "sync", "Ok"]);
    rig.parse(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[range], true);
    assert_eq!(rig.run(&[Ok(0), Err(libc::EIO)]), ["zero 4096 at 4096", "sync", "IoError"]);
}

#[test]
fn ranges_are_cleared_in_the_best_way_there_is() {
    use libc::{EIO, ENOSPC, EOPNOTSUPP};
    type Script = (&'static str, u32, u32, &'static [Result<usize, i32>], &'static [&'static str]);
    let table: [Script; 10] = [
        (
            "discard",
            VIRTIO_BLK_T_DISCARD,
            0,
            &[Ok(0), Ok(0)],
            &["punch 4096 at 0", "punch 512 at 8192", "Ok"],
        ),
        (
            "discard where there is none",
            VIRTIO_BLK_T_DISCARD,
            0,
            &[Err(EOPNOTSUPP), Err(EOPNOTSUPP)],
            &["punch 4096 at 0", "punch 512 at 8192", "Ok"],
        ),
        ("discard that fails", VIRTIO_BLK_T_DISCARD, 0, &[Err(EIO)], &["punch 4096 at 0", "IoError"]),
        (
            "zeroes",
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            &[Ok(0), Ok(0)],
            &["zero 4096 at 0", "zero 512 at 8192", "Ok"],
        ),
        (
            "unmap",
            VIRTIO_BLK_T_WRITE_ZEROES,
            1,
            &[Ok(0), Ok(0)],
            &["punch 4096 at 0", "punch 512 at 8192", "Ok"],
        ),
        (
            "unmap where there is only zero range",
            VIRTIO_BLK_T_WRITE_ZEROES,
            1,
            &[Err(EOPNOTSUPP), Ok(0), Ok(0)],
            &["punch 4096 at 0", "zero 4096 at 0", "punch 512 at 8192", "Ok"],
        ),
        (
            "zeroes by hand",
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            &[Err(EOPNOTSUPP), Ok(1000), Ok(3096), Err(EOPNOTSUPP), Ok(512)],
            &[
                "zero 4096 at 0",
                "write 4096 at 0",
                "write 3096 at 1000",
                "zero 512 at 8192",
                "write 512 at 8192",
                "Ok",
            ],
        ),
        (
            "zeroes by hand, full",
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            &[Err(EOPNOTSUPP), Err(ENOSPC)],
            &["zero 4096 at 0", "write 4096 at 0", "IoError"],
        ),
        (
            "zeroes by hand that come to nothing",
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            &[Err(EOPNOTSUPP), Ok(0)],
            &["zero 4096 at 0", "write 4096 at 0", "IoError"],
        ),
        ("zeroes, full", VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Err(ENOSPC)], &["zero 4096 at 0", "IoError"]),
    ];
    for (what, kind, flags, script, expected) in table {
        let mut rig = Rig::new(1);
        // Whatever was in the buffer that zeroes are written from.
        let _ = rig.operation.buffers.bounce();
        let data = [rig.range(DATA_AT, 0, 8, flags), rig.range(DATA_AT + 16, 16, 1, flags)];
        assert_eq!(rig.parse(kind, 0, &data, false), Parsed::Start, "{what}");
        assert_eq!(rig.run(script), expected, "{what}");
    }
}

#[test]
fn zeroes_by_hand_are_zeroes_and_go_in_pieces() {
    let mut rig = Rig::new(512);
    // Something else has been through the bounce buffer.
    rig.memory.write_slice(&[0xff; 4096], GuestAddress(DATA_AT)).unwrap();
    rig.parse(VIRTIO_BLK_T_OUT, 0, &[segment(DATA_AT + 1, 1024)], false);
    assert_eq!(rig.run(&[Ok(1024)]), ["write 1024 at 0", "Ok"]);
    let range = rig.range(DATA_AT, 0, 1024, 0);
    rig.parse(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[range], false);
    assert_eq!(rig.run(&[Err(libc::EOPNOTSUPP)]), ["zero 524288 at 0"]);
    let Step::Write { from: [part], .. } = rig.operation.step() else { panic!("a write") };
    let mut zeroes = vec![1u8; part.slice().len()];
    part.slice().copy_to(&mut zeroes[..]);
    assert!(zeroes.iter().all(|&byte| byte == 0));
    assert_eq!(
        rig.run(&[Ok(65_536), Ok(65_536), Ok(4096)]),
        ["write 65536 at 0", "write 65536 at 65536", "write 65536 at 131072"],
        "no more memory than a piece, whatever the guest asks for"
    );
}

#[test]
fn buffers_that_direct_io_cannot_take_go_through_one_that_it_can() {
    let mut rig = Rig::new(512);
    let pattern: Vec<u8> = (0..=250).cycle().take(600 * 1024).collect();
    // Odd addresses, odd lengths.
    let length = 600 * 1024 - 3;
    let data = [segment(DATA_AT + 1, length), segment(DATA_AT + 0x10_0000, 3)];
    assert_eq!(rig.parse(VIRTIO_BLK_T_IN, 0, &data, false), Parsed::Start);
    let mut done = 0;
    loop {
        let Step::Read { to: [part], offset } = rig.operation.step() else {
            panic!("a read into one buffer")
        };
        assert_eq!(offset, done as u64);
        let slice = part.slice();
        assert_eq!(slice.ptr_guard().as_ptr().addr() % 4096, 0);
        assert_eq!(slice.len() % 512, 0);
        assert!(slice.len() <= 65_536);
        slice.copy_from(&pattern[done..done + slice.len()]);
        // Not always as much as was asked for, but whole blocks.
        let got = slice.len().min(100 * 512);
        done += got;
        if let Progress::Done(status) = rig.operation.finish_step(Ok(got)) {
            assert_eq!(status, Status::Ok);
            break;
        }
    }
    let mut got = vec![0; pattern.len()];
    let (first, last) = got.split_at_mut(length as usize);
    rig.memory.read_slice(first, GuestAddress(DATA_AT + 1)).unwrap();
    rig.memory.read_slice(last, GuestAddress(DATA_AT + 0x10_0000)).unwrap();
    assert!(got == pattern);
    // And out again.
    assert_eq!(rig.parse(VIRTIO_BLK_T_OUT, 0, &data, false), Parsed::Start);
    let mut out: Vec<u8> = Vec::new();
    loop {
        let Step::Write { from: [part], .. } = rig.operation.step() else {
            panic!("a write from one buffer")
        };
        let mut bytes = vec![0u8; part.slice().len()];
        part.slice().copy_to(&mut bytes[..]);
        out.extend(&bytes);
        if let Progress::Done(status) = rig.operation.finish_step(Ok(bytes.len())) {
            assert_eq!(status, Status::Ok);
            break;
        }
    }
    assert!(out == pattern);
    // An address or a length is enough.
    for data in [[(1, 512), (0x1000, 512)], [(0, 511), (0x1000, 513)], [(0, 512), (0x1004, 512)]] {
        let data = data.map(|(at, length)| segment(DATA_AT + at, length));
        rig.parse(VIRTIO_BLK_T_IN, 0, &data, false);
        assert!(rig.operation.bouncing, "{data:?}");
    }
    // Aligned ones go straight.
    rig.parse(VIRTIO_BLK_T_IN, 0, &[segment(DATA_AT, 512), segment(DATA_AT + 4096, 1024)], false);
    assert_eq!(rig.run(&[Ok(1536)]), ["read 1536 at 0", "Ok"]);
    assert!(!rig.operation.bouncing);
}

/// A buffer across two regions of memory is two to the host, which takes 1024 at a time.
#[test]
fn more_pieces_than_the_host_takes_at_a_time_are_all_moved() {
    const BORDER: u64 = MEMORY as u64 / 2;
    let halves = [0, BORDER].map(|start| (GuestAddress(start), MEMORY / 2));
    let pieces = vec![segment(BORDER - 1, 2); 768];
    let data: Vec<u8> = (0..pieces.len()).flat_map(|_| *b"no").collect();
    for (align, steps) in [(1, &[1024, 512][..]), (512, &[1536])] {
        let mut rig = Rig::on(GuestMemoryMmap::from_ranges(&halves).unwrap(), align);
        rig.memory.write_slice(b"no", GuestAddress(BORDER - 1)).unwrap();
        rig.parse(VIRTIO_BLK_T_OUT, 0, &pieces, false);
        let mut out = Vec::new();
        for (n, &step) in (1..).zip(steps) {
            let Step::Write { from, offset, .. } = rig.operation.step() else { panic!("a write") };
            assert_eq!((bytes(from), offset), (step, out.len() as u64));
            for part in from {
                let mut bytes = vec![0u8; part.slice().len()];
                part.slice().copy_to(&mut bytes[..]);
                out.extend(bytes);
            }
            let done = n == steps.len();
            assert_eq!(
                rig.operation.finish_step(Ok(step)),
                if done { Progress::Done(Status::Ok) } else { Progress::Again }
            );
        }
        assert!(out == data, "{align}");
        rig.operation.answer(&rig.memory, Status::Ok).unwrap();
        assert!(
            rig.operation.buffers.bounced().is_empty(),
            "few requests need room of their own: it is given back"
        );

        // All of them are one place: the last is what is there in the end.
        rig.parse(VIRTIO_BLK_T_IN, 0, &pieces, false);
        for (n, &step) in (1..).zip(steps) {
            let Step::Read { to, .. } = rig.operation.step() else { panic!("a read") };
            for part in to {
                let there = vec![if n == steps.len() { b'x' } else { b'-' }; part.slice().len()];
                part.slice().copy_from(&there[..]);
            }
            if let Step::Read { to: [part], .. } = rig.operation.step() {
                part.slice().subslice(step - 2, 2).unwrap().copy_from(&b"yz"[..]);
            }
            let _ = rig.operation.finish_step(Ok(step));
        }
        let end: [u8; 2] = rig.memory.read_obj(GuestAddress(BORDER - 1)).unwrap();
        assert_eq!(&end, if align > 1 { b"yz" } else { b"xx" });
    }
}

/// Section 5.2.6.2: that the device does not know a flag goes before anything else that is wrong.
#[test]
fn an_unknown_flag_in_any_range_makes_the_request_an_unknown_one() {
    let mut rig = Rig::new(1);
    let beyond = 1 << 20;
    let table = [
        (VIRTIO_BLK_T_DISCARD, [(beyond, 0), (0, 1)], Status::Unsupported),
        (VIRTIO_BLK_T_DISCARD, [(0, 1), (beyond, 0)], Status::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, [(beyond, 0), (0, 2)], Status::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, [(0, 2), (beyond, 0)], Status::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, [(beyond, 0), (0, 1)], Status::IoError),
        (VIRTIO_BLK_T_WRITE_ZEROES, [(0, 1), (beyond, 0)], Status::IoError),
    ];
    for (kind, ranges, expected) in table {
        let [first, second] = ranges;
        let data = [rig.range(DATA_AT, first.0, 8, first.1), rig.range(DATA_AT + 16, second.0, 8, second.1)];
        assert_eq!(rig.parse(kind, 0, &data, false), Parsed::Done(expected), "{kind}: {ranges:?}");
    }
}
