// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI and MSI-X: what a guest's writes tell the sink, and a comparison with a model that knows the specification and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex, OnceLock};

use common::{IDENTITY, Recorder, bar};
use irq_types::MsiMessage;
use pci::VectorChange::{Allowed, Enable, FunctionMask, Mask, Program, Reset};
use pci::*;
use proptest::prelude::*;

fn message(address: u64, data: u32) -> MsiMessage {
    MsiMessage { address, data }
}

fn msix(vectors: u16) -> (Arc<Recorder>, Msix) {
    let sink = Arc::new(Recorder::default());
    let layout = MsixLayout::new(vectors, (bar(0), 0), (bar(0), 0x8000)).unwrap();
    let msix = Msix::new(layout, sink.clone());
    assert_eq!(sink.take(), [[Reset]]);
    (sink, msix)
}

fn msi(layout: MsiLayout) -> (Arc<Recorder>, Msi) {
    let sink = Arc::new(Recorder::default());
    let msi = Msi::new(layout, sink.clone());
    let masks = (0..layout.vectors()).map(|vector| Mask(vector.into(), false));
    assert_eq!(sink.take(), [[Reset, Allowed(1)].into_iter().chain(masks).collect::<Vec<_>>()]);
    (sink, msi)
}

#[test]
fn a_write_to_the_table_is_one_call() {
    let (sink, msix) = msix(3);
    for (offset, data, expected) in [
        (0x10, &[0x43, 0, 0x09, 0x08][..], vec![Program(1, message(0x0809_0040, 0))]),
        (0x14, &[1, 0, 0, 0], vec![Program(1, message(0x1_0809_0040, 0))]),
        (0x10, &[0x40, 0, 0x08, 0x08, 0, 0, 0, 0], vec![Program(1, message(0x0808_0040, 0))]),
        (0x18, &[7, 0, 0, 0, 0, 0, 0, 0], vec![Program(1, message(0x0808_0040, 7)), Mask(1, false)]),
        (0x1c, &[0xfe, 0xff, 0xff, 0xff], vec![]),
        (0x1c, &[1, 0, 0, 0], vec![Mask(1, true)]),
        // What software must not do.
        (0x1c, &[0], vec![]),
        (0x1c, &[0, 0], vec![]),
        (0x1a, &[0, 0, 0, 0], vec![]),
        (0x14, &[0; 8], vec![]),
        (0x30, &[0; 4], vec![]),
        (u64::MAX - 7, &[0; 8], vec![]),
    ] {
        msix.write_table(offset, data);
        let expected = if expected.is_empty() { vec![] } else { vec![expected] };
        assert_eq!(sink.take(), expected, "{data:x?} at {offset:#x}");
    }
    let mut entry = [0; 16];
    msix.read_table(0x10, &mut entry);
    assert_eq!(entry, [0x40, 0, 8, 8, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(msix.vector(1), Some((message(0x0808_0040, 7), true)));
    msix.write_table(0x1c, &[0; 4]);
    assert_eq!((sink.take(), msix.vector(1).unwrap().1), (vec![vec![Mask(1, false)]], false));
    // Behind the table, and at the end of all addresses, there are zeros.
    for offset in [0x30, u64::MAX - 3] {
        let mut behind = [0xee; 8];
        msix.read_table(offset, &mut behind);
        assert_eq!(behind, [0; 8]);
    }
    assert_eq!(msix.vector(3), None);
    msix.reset();
    assert_eq!((sink.take(), msix.vector(1)), (vec![vec![Reset]], Some((message(0, 0), true))));
}

#[test]
fn message_control_has_two_bits_and_one_call() {
    let (sink, msix) = msix(2048);
    let control = |msix: &Msix| {
        let mut bytes = [0; 2];
        msix.read_capability(2, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    assert_eq!(control(&msix), 0x07ff);
    for (offset, data, expected, value) in [
        (2, &[0, 0xc0][..], vec![FunctionMask(true), Enable(true)], 0xc7ff),
        (3, &[0x80], vec![FunctionMask(false)], 0x87ff),
        (0, &[0x11, 0, 0, 0x80], vec![], 0x87ff),
        (2, &[0xff], vec![], 0x87ff),
        (4, &[0; 4], vec![], 0x87ff),
        (8, &[0; 4], vec![], 0x87ff),
        (0, &[0, 0, 0, 0x40], vec![FunctionMask(true), Enable(false)], 0x47ff),
    ] {
        msix.write_capability(offset, data);
        let expected = if expected.is_empty() { vec![] } else { vec![expected] };
        assert_eq!((sink.take(), control(&msix)), (expected, value), "{data:x?} at {offset}");
        assert_eq!(msix.is_enabled(), value & 0x8000 != 0);
        assert_eq!(msix.is_function_masked(), value & 0x4000 != 0);
    }
}

#[test]
fn the_pending_bit_array_is_the_sinks_and_has_no_bits_beyond_the_vectors() {
    let (sink, msix) = msix(70);
    *sink.pending.lock().unwrap() = vec![0x8000_0000_0000_0001, u64::MAX, u64::MAX];
    let mut array = [0xee; 24];
    msix.read_pending(0, &mut array);
    assert_eq!(array[..8], [1, 0, 0, 0, 0, 0, 0, 0x80]);
    assert_eq!(array[8..], [0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut part = [0; 4];
    msix.read_pending(6, &mut part);
    assert_eq!(part, [0, 0x80, 0x3f, 0]);
    let mut end = [0xee; 4];
    msix.read_pending(u64::MAX - 2, &mut end);
    assert_eq!(end, [0; 4]);
    for (vectors, words) in [(1, [1, 0]), (63, [u64::MAX >> 1, 0]), (64, [u64::MAX, 0]), (65, [u64::MAX, 1])]
    {
        let (sink, msix) = self::msix(vectors);
        *sink.pending.lock().unwrap() = vec![u64::MAX; 2];
        let mut array = [0; 16];
        msix.read_pending(0, &mut array);
        assert_eq!(array.as_chunks().0, words.map(u64::to_le_bytes), "{vectors} vectors");
    }
}

/// A sink that looks whether its capability is enabled while it is told of a change.
#[derive(Default)]
struct Asking {
    is_enabled: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
    enabled: Mutex<Vec<bool>>,
}

impl VectorSink for Asking {
    fn apply(&self, _: &[VectorChange]) {
        self.enabled.lock().unwrap().extend(self.is_enabled.get().map(|is_enabled| is_enabled()));
    }

    fn pending_word(&self, _: usize) -> u64 {
        0
    }
}

/// What the sink has found each time while the capability was switched on, off, on and reset, and what everybody found after it.
fn switched(sink: &Asking, switch: impl Fn(bool), reset: impl Fn()) -> (Vec<bool>, Vec<bool>) {
    let is_enabled = sink.is_enabled.get().unwrap();
    let mut after = Vec::new();
    for on in [true, false, true] {
        switch(on);
        after.push(is_enabled());
    }
    reset();
    after.push(is_enabled());
    (sink.enabled.lock().unwrap().clone(), after)
}

/// A device that asks, and then raises a vector, must not find the sink closed already or still.
#[test]
fn a_capability_is_enabled_only_while_its_sink_is() {
    let expected = (vec![false; 4], vec![true, false, true, false]);

    let sink = Arc::new(Asking::default());
    let msi = Arc::new(Msi::new(MsiLayout::new(1).unwrap(), sink.clone()));
    let asked = Arc::downgrade(&msi);
    assert!(sink.is_enabled.set(Box::new(move || asked.upgrade().unwrap().is_enabled())).is_ok());
    let switch = |on| msi.write_capability(2, &[u8::from(on)]);
    assert_eq!(switched(&sink, switch, || msi.reset()), expected);

    let sink = Arc::new(Asking::default());
    let layout = MsixLayout::new(1, (bar(0), 0), (bar(0), 0x8000)).unwrap();
    let msix = Arc::new(Msix::new(layout, sink.clone()));
    let asked = Arc::downgrade(&msix);
    assert!(sink.is_enabled.set(Box::new(move || asked.upgrade().unwrap().is_enabled())).is_ok());
    let switch = |on| msix.write_capability(3, &[u8::from(on) << 7]);
    assert_eq!(switched(&sink, switch, || msix.reset()), expected);
}

#[test]
fn the_data_of_msi_tells_allowed_vectors_apart() {
    let (sink, msi) = msi(MsiLayout::new(8).unwrap());
    assert_eq!(msi.allowed(), 1);
    msi.write_capability(4, &0x0809_0043_u32.to_le_bytes());
    msi.write_capability(8, &[1, 0, 0, 0]);
    msi.write_capability(12, &[0x4d, 0x12]);
    assert_eq!(sink.take(), Vec::<Vec<_>>::new(), "nothing matters before it is enabled");
    let program = |vector, data| Program(vector, message(0x1_0809_0040, data));
    // Four vectors, enabled in the same write.
    msi.write_capability(2, &[0x21, 0]);
    let programs = [program(0, 0x124c), program(1, 0x124d), program(2, 0x124e), program(3, 0x124f)];
    let expected: Vec<_> = [Allowed(4)].into_iter().chain(programs).chain([Enable(true)]).collect();
    assert_eq!((sink.take(), msi.allowed()), (vec![expected], 4));
    // Two.
    msi.write_capability(2, &[0x11]);
    assert_eq!(sink.take(), [[Allowed(2), program(0, 0x124c), program(1, 0x124d)]]);
    // More than there are, and reserved values, are as many as there are.
    for field in [3, 5, 6, 7] {
        msi.write_capability(2, &[0x01]);
        assert_eq!(sink.take(), [[Allowed(1), program(0, 0x124d)]]);
        msi.write_capability(2, &[field << 4 | 1]);
        let programs = (0..8).map(|vector| program(vector, 0x1248 + vector as u32));
        assert_eq!(sink.take(), [[Allowed(8)].into_iter().chain(programs).collect::<Vec<_>>()]);
    }
    // Another message while it is enabled.
    msi.write_capability(2, &[0x01]);
    sink.take();
    msi.write_capability(12, &[0x34, 0x12]);
    assert_eq!(sink.take(), [[program(0, 0x1234)]]);
    msi.write_capability(2, &[0x00]);
    assert_eq!((sink.take(), msi.is_enabled()), (vec![vec![Enable(false)]], false));
}

#[test]
fn masks_and_pending_bits_of_msi() {
    let (sink, msi) = msi(MsiLayout::new(4).unwrap().with_masking());
    msi.write_capability(16, &[0xf5, 0xff, 0xff, 0xff]);
    assert_eq!(sink.take(), [[Mask(0, true), Mask(2, true)]]);
    msi.write_capability(16, &[0x06]);
    assert_eq!(sink.take(), [[Mask(0, false), Mask(1, true)]]);
    *sink.pending.lock().unwrap() = vec![0xff2];
    let mut bits = [0; 8];
    msi.read_capability(16, &mut bits);
    assert_eq!(bits, [6, 0, 0, 0, 2, 0, 0, 0]);
    msi.write_capability(20, &[0xff; 4]);
    assert_eq!(sink.take(), Vec::<Vec<_>>::new());
    msi.reset();
    let reset = vec![Reset, Allowed(1), Mask(0, false), Mask(1, false), Mask(2, false), Mask(3, false)];
    assert_eq!(sink.take(), [reset]);
    msi.read_capability(16, &mut bits);
    assert_eq!(bits[0], 0);
}

#[test]
fn an_endpoint_joins_them() {
    let (one, many) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let layout = MsixLayout::new(2, (bar(1), 0x800), (bar(1), 0x900)).unwrap();
    let endpoint = Endpoint::new(ConfigSpace::new(IDENTITY))
        .with_msi(MsiLayout::new(1).unwrap().with_masking(), one.clone())
        .unwrap()
        .with_msix(layout, many.clone())
        .unwrap();
    one.take();
    many.take();
    let dword = |at| {
        let mut bytes = [0; 4];
        endpoint.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    // 24 bytes of MSI, then MSI-X.
    assert_eq!((dword(0x34), dword(0x40), dword(0x58)), (0x40, 0x0180_5805, 0x0001_0011));
    endpoint.write(0x5a, &[0, 0x80]);
    assert_eq!((many.take(), dword(0x58)), (vec![vec![Enable(true)]], 0x8001_0011));
    assert!(endpoint.msix_enabled() && !endpoint.msi_enabled());
    endpoint.write(0x42, &[1, 0]);
    assert_eq!(one.take(), [[Program(0, message(0, 0)), Enable(true)]]);
    assert_eq!(dword(0x40), 0x0181_5805);
    *one.pending.lock().unwrap() = vec![1];
    assert_eq!(dword(0x54), 1);
    assert!(!endpoint.write_msix(bar(0), 0x800, &[0; 4]) && !endpoint.write_msix(bar(1), 0x7fc, &[0; 4]));
    assert!(endpoint.write_msix(bar(1), 0x81c, &[0; 4]) && endpoint.write_msix(bar(1), 0x900, &[0; 4]));
    assert_eq!(many.take(), [[Mask(1, false)]]);
    *many.pending.lock().unwrap() = vec![2];
    let mut byte = [0];
    assert!(endpoint.read_msix(bar(1), 0x900, &mut byte) && byte == [2]);
    assert!(endpoint.read_msix(bar(1), 0x80c, &mut byte) && byte == [1]);
    assert!(!endpoint.read_msix(bar(1), 0x820, &mut byte), "between table and pending bits");
    endpoint.reset();
    assert!(!endpoint.msix_enabled() && !endpoint.msi_enabled());
    assert_eq!(many.take(), [[Reset]]);
    assert_eq!((dword(0x40), dword(0x58)), (0x0180_5805, 0x0001_0011));
}

/// What a guest does to MSI-X.
#[derive(Debug, Clone)]
enum Step {
    Table(u64, u64, bool),
    Control(u8),
    Reset,
}

fn steps(vectors: u16) -> impl Strategy<Value = Vec<Step>> {
    let dwords = u64::from(vectors) * 4;
    let table =
        (0..dwords + 2, any::<u64>(), any::<bool>()).prop_map(|(at, data, wide)| Step::Table(at, data, wide));
    let step = prop_oneof![20 => table, 4 => any::<u8>().prop_map(Step::Control), 1 => Just(Step::Reset)];
    proptest::collection::vec(step, 0..60)
}

/// As a sink would have it, from what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    enabled: bool,
    function_masked: bool,
    vectors: Vec<(MsiMessage, bool)>,
}

impl Told {
    fn new(vectors: u16) -> Self {
        let vectors = vec![(MsiMessage::default(), true); usize::from(vectors)];
        Self { enabled: false, function_masked: false, vectors }
    }

    fn hear(&mut self, changes: &[VectorChange]) {
        for change in changes {
            match *change {
                Reset => *self = Self::new(self.vectors.len() as u16),
                Program(vector, message) => self.vectors[vector].0 = message,
                Mask(vector, masked) => {
                    assert_ne!(self.vectors[vector].1, masked, "no change");
                    self.vectors[vector].1 = masked;
                }
                FunctionMask(masked) => self.function_masked = masked,
                Enable(enabled) => self.enabled = enabled,
                Allowed(_) => panic!("that is MSI's"),
            }
        }
    }
}

proptest! {
    /// The naive model is bytes: an array that takes what may be written.
    #[test]
    fn the_table_reads_back_as_bytes_would_and_the_sink_knows_the_same(
        vectors in 1_u16..70,
        steps in steps(70),
    ) {
        let (sink, msix) = msix(vectors);
        let fresh = || -> Vec<u32> { (0..u32::from(vectors) * 4).map(|at| u32::from(at % 4 == 3)).collect() };
        let (mut bytes, mut control, mut told) = (fresh(), 0_u8, Told::new(vectors));
        for step in steps {
            match step {
                Step::Table(at, data, wide) => {
                    let at = if wide { at & !1 } else { at };
                    let dwords = [data as u32, (data >> 32) as u32];
                    for (dword, at) in dwords.into_iter().take(1 + usize::from(wide)).zip(at..) {
                        if let Some(slot) = bytes.get_mut(at as usize) {
                            *slot = dword & match at % 4 { 0 => !3, 3 => 1, _ => u32::MAX };
                        }
                    }
                    msix.write_table(at * 4, &data.to_le_bytes()[..if wide { 8 } else { 4 }]);
                }
                Step::Control(upper) => {
                    control = upper & 0xc0;
                    msix.write_capability(3, &[upper]);
                }
                Step::Reset => {
                    (bytes, control) = (fresh(), 0);
                    msix.reset();
                }
            }
            let calls = sink.take();
            prop_assert!(calls.len() <= 1, "one write, one call");
            calls.iter().for_each(|changes| told.hear(changes));
            let mut read = vec![0; bytes.len() * 4];
            msix.read_table(0, &mut read);
            let expected: Vec<u8> = bytes.iter().flat_map(|dword| dword.to_le_bytes()).collect();
            prop_assert_eq!(&read, &expected);
            let mut upper = [0];
            msix.read_capability(3, &mut upper);
            prop_assert_eq!(upper[0] & 0xc0, control);
            let entries = bytes.as_chunks::<4>().0.iter();
            let vectors = entries.map(|e| (message(u64::from(e[1]) << 32 | u64::from(e[0]), e[2]), e[3] == 1));
            let expected = Told {
                enabled: control & 0x80 != 0,
                function_masked: control & 0x40 != 0,
                vectors: vectors.collect(),
            };
            prop_assert_eq!(&told, &expected);
        }
    }

    /// After any writes the sink knows of MSI what its registers say.
    #[test]
    fn the_sink_of_msi_knows_what_the_registers_say(
        log in 0_u16..6,
        wide: bool,
        masking: bool,
        writes in proptest::collection::vec((0_u16..24, any::<[u8; 4]>(), 0_usize..3), 0..40),
    ) {
        let mut layout = MsiLayout::new(1 << log).unwrap();
        if masking { layout = layout.with_masking(); }
        if !wide { layout = layout.with_32_bit_address(); }
        let (sink, msi) = msi(layout);
        let vectors = usize::from(layout.vectors());
        let (mut enabled, mut allowed) = (false, 1);
        let mut known = vec![(None, false); vectors];
        for (offset, data, shape) in writes {
            let size = [1, 2, 4][shape];
            msi.write_capability(offset / size * size, &data[..usize::from(size)]);
            for change in sink.take().concat() {
                match change {
                    Enable(now) => enabled = now,
                    Allowed(now) => allowed = now,
                    Program(vector, message) => known[vector].0 = Some(message),
                    Mask(vector, masked) => known[vector].1 = masked,
                    Reset | FunctionMask(_) => prop_assert!(false, "not by a write"),
                }
            }
            let mut bytes = [0; 24];
            msi.read_capability(0, &mut bytes[..usize::from(layout.capability_length())]);
            let word = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            let dword = |at: usize| word(at) | word(at + 2) << 16;
            let control = word(2);
            prop_assert_eq!(enabled, control & 1 != 0);
            prop_assert_eq!(allowed, 1 << (control >> 4 & 7).min(u32::from(log)));
            prop_assert_eq!(usize::from(msi.allowed()), allowed);
            let address = u64::from(dword(4)) | if wide { u64::from(dword(8)) << 32 } else { 0 };
            let data = word(if wide { 12 } else { 8 });
            let mask = if masking { dword(if wide { 16 } else { 12 }) } else { 0 };
            prop_assert_eq!(u64::from(mask) >> vectors, 0);
            for (vector, (programmed, masked)) in known.iter().enumerate() {
                prop_assert_eq!(*masked, mask >> vector & 1 != 0);
                if enabled && vector < allowed {
                    let low = allowed as u32 - 1;
                    let data = data & !low | vector as u32;
                    prop_assert_eq!(*programmed, Some(message(address, data)));
                }
            }
        }
    }
}
