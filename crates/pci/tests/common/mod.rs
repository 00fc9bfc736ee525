// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function that remembers what happens to it, a sink that does, and a host bridge to put them on.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::{Arc, Mutex};

use irq_types::Bdf;
use pci::*;

pub const ECAM: u64 = 0x40_1000_0000;
pub const MEMORY_32: std::ops::Range<u64> = 0x2000_0000..0x3fff_0000;
pub const MEMORY_64: std::ops::Range<u64> = 0x80_0000_0000..0xc0_0000_0000;
pub const IO: IoWindow = IoWindow { base: 0x3fff_0000, size: 0x1_0000 };

pub fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

pub fn bar(n: u8) -> BarIndex {
    BarIndex::new(n).unwrap()
}

pub fn host_config() -> HostConfig {
    HostConfig {
        segment: 0,
        ecam: ECAM,
        buses: 256,
        memory32: MEMORY_32,
        memory64: Some(MEMORY_64),
        io: Some(IO),
    }
}

pub const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: ClassCode { base: 1, sub: 0x80, interface: 0 },
    subsystem_vendor: 0x1af4,
    subsystem: 2,
};

/// What a sink was told, call by call.
#[derive(Default)]
pub struct Recorder {
    pub calls: Mutex<Vec<Vec<VectorChange>>>,
    pub pending: Mutex<Vec<u64>>,
}

impl Recorder {
    pub fn take(&self) -> Vec<Vec<VectorChange>> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl VectorSink for Recorder {
    fn apply(&self, changes: &[VectorChange]) {
        assert!(!changes.is_empty(), "a call that says nothing");
        self.calls.lock().unwrap().push(changes.to_vec());
    }

    fn pending_word(&self, word: usize) -> u64 {
        self.pending.lock().unwrap().get(word).copied().unwrap_or(0)
    }
}

/// What happened to a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Placed(Vec<DecodedBar>),
    Bdf(Bdf),
    Reset,
    Write(BarIndex, u64, Vec<u8>),
}

/// A function of BARs that read as their index and offset.
pub struct Device {
    pub endpoint: Endpoint,
    pub seen: Mutex<Vec<Seen>>,
    /// What it was told last.
    pub placed: Mutex<Vec<DecodedBar>>,
}

impl Device {
    pub fn new(bars: &[(u8, BarKind, u64)]) -> Arc<Self> {
        let mut config = ConfigSpace::new(IDENTITY);
        for (index, kind, size) in bars {
            config.add_bar(bar(*index), *kind, *size).unwrap();
        }
        config.add_capability(&Capability::power_management()).unwrap();
        config.add_capability(&Capability::express(ExpressKind::Endpoint, true)).unwrap();
        Arc::new(Self { endpoint: Endpoint::new(config), seen: Mutex::default(), placed: Mutex::default() })
    }

    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn note(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
    }
}

impl PciFunction for Device {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset % 4) + data.len() <= 4);
        self.endpoint.read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset % 4) + data.len() <= 4);
        self.endpoint.write(offset, data);
    }
    fn decoded(&self) -> Vec<DecodedBar> {
        self.endpoint.decoded()
    }
    fn placed(&self, bars: &[DecodedBar]) {
        *self.placed.lock().unwrap() = bars.to_vec();
        self.note(Seen::Placed(bars.to_vec()));
    }
    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(bar.get() << 4 | (offset as u8 & 0xf));
    }
    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.note(Seen::Write(bar, offset, data.to_vec()));
    }
    fn set_bdf(&self, bdf: Bdf) {
        self.note(Seen::Bdf(bdf));
    }
    fn reset(&self) {
        self.endpoint.reset();
        self.note(Seen::Reset);
    }
}

/// The bus as a guest sees it.
pub trait Guest {
    fn dword(&self, bdf: Bdf, offset: u16) -> u32;
    fn set_dword(&self, bdf: Bdf, offset: u16, value: u32);
    fn word(&self, bdf: Bdf, offset: u16) -> u16;
    fn set_word(&self, bdf: Bdf, offset: u16, value: u16);
    fn load(&self, address: u64) -> u8;
    /// Where a capability of the standard list is.
    fn capability(&self, bdf: Bdf, id: u8) -> u16;
}

fn ecam(bdf: Bdf, offset: u16) -> u64 {
    ECAM + (u64::from(bdf.requester_id()) << 12) + u64::from(offset)
}

impl Guest for HostBridge {
    fn dword(&self, bdf: Bdf, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(ecam(bdf, offset), &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn set_dword(&self, bdf: Bdf, offset: u16, value: u32) {
        self.write(ecam(bdf, offset), &value.to_le_bytes());
    }
    fn word(&self, bdf: Bdf, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(ecam(bdf, offset), &mut bytes);
        u16::from_le_bytes(bytes)
    }
    fn set_word(&self, bdf: Bdf, offset: u16, value: u16) {
        self.write(ecam(bdf, offset), &value.to_le_bytes());
    }
    fn load(&self, address: u64) -> u8 {
        let mut byte = [0];
        self.read(address, &mut byte);
        byte[0]
    }
    fn capability(&self, bdf: Bdf, id: u8) -> u16 {
        let mut at = self.dword(bdf, 0x34) as u8;
        for _ in 0..48 {
            assert!(at >= 0x40 && at.is_multiple_of(4), "capability {id:#x} of {bdf} not found");
            let header = self.dword(bdf, at.into());
            if header as u8 == id {
                return at.into();
            }
            at = (header >> 8) as u8;
        }
        panic!("the list of {bdf} is a loop");
    }
}

/// A port that counts its messages and knows its line.
#[derive(Default)]
pub struct Wires {
    pub sink: Recorder,
    pub messages: std::sync::atomic::AtomicU32,
    pub line: std::sync::atomic::AtomicBool,
}

impl Wires {
    pub fn port(config: &PortConfig) -> (Arc<Self>, Arc<RootPort>) {
        use std::sync::atomic::Ordering;
        let wires = Arc::new(Self::default());
        let (sink, message, line) = (wires.clone(), wires.clone(), wires.clone());
        let interrupts = PortInterrupts {
            sink: Arc::new(SinkOf(sink)),
            message: Box::new(move || {
                message.messages.fetch_add(1, Ordering::SeqCst);
            }),
            line: Box::new(move |high| line.line.store(high, Ordering::SeqCst)),
        };
        let port = Arc::new(RootPort::new(config, interrupts).unwrap());
        (wires, port)
    }

    pub fn messages(&self) -> u32 {
        self.messages.swap(0, std::sync::atomic::Ordering::SeqCst)
    }

    pub fn line(&self) -> bool {
        self.line.load(std::sync::atomic::Ordering::SeqCst)
    }
}

struct SinkOf(Arc<Wires>);

impl VectorSink for SinkOf {
    fn apply(&self, changes: &[VectorChange]) {
        self.0.sink.apply(changes);
    }
    fn pending_word(&self, word: usize) -> u64 {
        self.0.sink.pending_word(word)
    }
}
