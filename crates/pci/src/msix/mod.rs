// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI-X (PCI Express base specification 6.0, section 7.7.2).

mod layout;
mod table;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use irq_types::MsiMessage;

pub use self::layout::{MsixLayout, MsixRegion};
pub use self::table::MsixTable;
use crate::lock::lock;
use crate::{VectorChange, VectorSink};

/// Message control: the number of vectors, less one.
pub(crate) const CONTROL_TABLE_SIZE: u16 = 0x07ff;
/// Message control: all vectors are masked.
pub(crate) const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Message control: the function interrupts by MSI-X.
pub(crate) const CONTROL_ENABLE: u16 = 1 << 15;
/// Where message control is, from the capability's start.
const CONTROL: u16 = 2;

/// The MSI-X of one function: capability, table and pending bit array, and the sink that they drive.
///
/// It stands alone: [`Endpoint`](crate::Endpoint) puts it into a configuration space; one that passes a device through keeps the device's own
/// capability, and brings the accesses to it, to the table and to the pending bit array here.
///
/// Each write of the guest's that changes something is one call of [`VectorSink::apply`].
pub struct Msix {
    layout: MsixLayout,
    sink: Arc<dyn VectorSink>,
    state: Mutex<State>,
    /// A copy, for a device that asks with each interrupt.
    enabled: AtomicBool,
}

#[derive(Debug)]
struct State {
    enabled: bool,
    function_masked: bool,
    table: MsixTable,
}

impl Msix {
    /// A capability as after a reset. The sink is told so.
    #[must_use]
    pub fn new(layout: MsixLayout, sink: Arc<dyn VectorSink>) -> Self {
        sink.apply(&[VectorChange::Reset]);
        let table = MsixTable::new(layout.vectors());
        let state = Mutex::new(State { enabled: false, function_masked: false, table });
        Self { layout, sink, state, enabled: AtomicBool::new(false) }
    }

    /// How many vectors there are, and where.
    #[must_use]
    pub const fn layout(&self) -> &MsixLayout {
        &self.layout
    }

    /// Whether the function interrupts by MSI-X.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Whether all vectors are masked together.
    #[must_use]
    pub fn is_function_masked(&self) -> bool {
        lock(&self.state).function_masked
    }

    /// What the table has for a vector: its message and mask bit; `None` if there is no such vector.
    #[must_use]
    pub fn vector(&self, vector: usize) -> Option<(MsiMessage, bool)> {
        let state = lock(&self.state);
        state.table.message(vector).zip(state.table.is_masked(vector))
    }

    /// The guest reads the capability, `offset` bytes from its start. ID and next pointer read zero: they are the configuration space's.
    pub fn read_capability(&self, offset: u16, data: &mut [u8]) {
        let state = lock(&self.state);
        let mut bytes = self.layout.capability().bytes;
        let control = (self.layout.vectors() - 1)
            | if state.enabled { CONTROL_ENABLE } else { 0 }
            | if state.function_masked { CONTROL_FUNCTION_MASK } else { 0 };
        bytes[usize::from(CONTROL)..][..2].copy_from_slice(&control.to_le_bytes());
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest writes to the capability. Enable and function mask are all that can be written, both in the upper byte of message control.
    pub fn write_capability(&self, offset: u16, data: &[u8]) {
        let Some(upper) = (CONTROL + 1).checked_sub(offset).and_then(|at| data.get(usize::from(at))) else {
            return;
        };
        let control = u16::from(*upper) << 8;
        let mut state = lock(&self.state);
        let (enabled, masked) = (control & CONTROL_ENABLE != 0, control & CONTROL_FUNCTION_MASK != 0);
        let mut changes = Vec::new();
        if state.function_masked != masked {
            changes.push(VectorChange::FunctionMask(masked));
        }
        if state.enabled != enabled {
            changes.push(VectorChange::Enable(enabled));
        }
        state.function_masked = masked;
        state.enabled = enabled;
        // A device that asks should find MSI-X enabled only while the sink is.
        self.enabled.fetch_and(enabled, Ordering::AcqRel);
        self.apply(&changes);
        self.enabled.store(enabled, Ordering::Release);
    }

    /// The guest reads the table, `offset` bytes from its start.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        lock(&self.state).table.read(offset, data);
    }

    /// The guest writes to the table.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        let mut changes = Vec::new();
        state.table.write(offset, data, &mut changes);
        self.apply(&changes);
    }

    /// The guest reads the pending bit array, `offset` bytes from its start. Writes to it are lost.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let words = u64::from(self.layout.vectors()).div_ceil(64);
        let mut known = None;
        data.fill(0);
        for (byte, at) in data.iter_mut().zip(offset..=u64::MAX) {
            let index = at / 8;
            let word = match known {
                Some((known, word)) if known == index => word,
                _ => self.pending_word(index, words),
            };
            known = Some((index, word));
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
    }

    /// A quadword of the array, without bits of vectors that are not there.
    fn pending_word(&self, index: u64, words: u64) -> u64 {
        let Some(index) = usize::try_from(index).ok().filter(|&index| (index as u64) < words) else {
            return 0;
        };
        let vectors = usize::from(self.layout.vectors()) - index * 64;
        let mask = if vectors < 64 { (1 << vectors) - 1 } else { u64::MAX };
        self.sink.pending_word(index) & mask
    }

    /// A reset of the function.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        let table = MsixTable::new(self.layout.vectors());
        *state = State { enabled: false, function_masked: false, table };
        self.enabled.store(false, Ordering::Release);
        self.apply(&[VectorChange::Reset]);
    }

    /// With the state locked, so that the sink hears of writes in the order in which they took effect.
    fn apply(&self, changes: &[VectorChange]) {
        if !changes.is_empty() {
            self.sink.apply(changes);
        }
    }
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Msix")
            .field("layout", &self.layout)
            .field("enabled", &state.enabled)
            .field("function_masked", &state.function_masked)
            .finish_non_exhaustive()
    }
}
