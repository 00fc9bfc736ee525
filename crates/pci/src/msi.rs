// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI (PCI Express base specification 6.0, section 7.7.1).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use irq_types::MsiMessage;

use crate::config::id;
use crate::lock::lock;
use crate::registers::Registers;
use crate::{Capability, ConfigError, VectorChange, VectorSink};

// Message control.
const CONTROL: u16 = 2;
const CONTROL_ENABLE: u16 = 1;
const CONTROL_CAPABLE_SHIFT: u16 = 1;
const CONTROL_ALLOWED_SHIFT: u16 = 4;
/// Of the two fields that hold the logarithm of a number of vectors.
const CONTROL_FIELD: u16 = 7;
const CONTROL_64_BIT: u16 = 1 << 7;
const CONTROL_MASKING: u16 = 1 << 8;
/// Message address, lower half.
const ADDRESS: u16 = 4;

/// How many vectors a function has, and which of the four shapes of the capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MsiLayout {
    /// Logarithm of the number of vectors: 0 to 5.
    log: u16,
    wide: bool,
    masking: bool,
}

impl MsiLayout {
    /// A capability of `vectors`: 1, 2, 4, 8, 16 or 32. Its address has 64 bits, and its vectors have no masks of their own.
    ///
    /// # Errors
    /// [`ConfigError::Vectors`].
    pub const fn new(vectors: u16) -> Result<Self, ConfigError> {
        if !vectors.is_power_of_two() || vectors > 32 {
            let allowed = "1, 2, 4, 8, 16 or 32";
            return Err(ConfigError::Vectors { capability: "MSI", vectors, allowed });
        }
        #[allow(clippy::cast_possible_truncation, reason = "5 at most")]
        let log = vectors.trailing_zeros() as u16;
        Ok(Self { log, wide: true, masking: false })
    }

    /// With a mask and a pending bit for each vector.
    #[must_use]
    pub const fn with_masking(self) -> Self {
        Self { masking: true, ..self }
    }

    /// With an address of 32 bits.
    #[must_use]
    pub const fn with_32_bit_address(self) -> Self {
        Self { wide: false, ..self }
    }

    /// From the message control word of a device's own capability, the 16 bits at offset 2.
    ///
    /// # Errors
    /// [`ConfigError::Vectors`] if it says 64 or 128 vectors, which are reserved.
    pub const fn parse(message_control: u16) -> Result<Self, ConfigError> {
        let log = message_control >> CONTROL_CAPABLE_SHIFT & CONTROL_FIELD;
        let layout = match Self::new(1 << log) {
            Ok(layout) => layout,
            Err(error) => return Err(error),
        };
        let (wide, masking) = (message_control & CONTROL_64_BIT != 0, message_control & CONTROL_MASKING != 0);
        Ok(Self { wide, masking, ..layout })
    }

    /// How many vectors there are.
    #[must_use]
    pub const fn vectors(&self) -> u16 {
        1 << self.log
    }

    /// How many bytes the capability has: 10, 14, 20 or 24.
    #[must_use]
    pub const fn capability_length(&self) -> u16 {
        match (self.masking, self.wide) {
            (true, _) => self.pending() + 4,
            (false, _) => self.data() + 2,
        }
    }

    const fn data(&self) -> u16 {
        ADDRESS + if self.wide { 8 } else { 4 }
    }

    const fn mask(&self) -> u16 {
        self.data() + 4
    }

    const fn pending(&self) -> u16 {
        self.mask() + 4
    }

    /// A bit for each vector.
    #[allow(clippy::cast_possible_truncation, reason = "32 vectors at most")]
    const fn all(&self) -> u32 {
        ((1_u64 << self.vectors()) - 1) as u32
    }

    fn control(&self) -> u16 {
        self.log << CONTROL_CAPABLE_SHIFT
            | if self.wide { CONTROL_64_BIT } else { 0 }
            | if self.masking { CONTROL_MASKING } else { 0 }
    }

    /// The capability, disabled.
    #[must_use]
    pub fn capability(&self) -> Capability {
        let length = usize::from(self.capability_length());
        let mut capability = Capability::new(id::MSI, &vec![0; length - 2]);
        let put = |to: &mut [u8], offset: u16, value: &[u8]| {
            for (byte, value) in to.iter_mut().skip(usize::from(offset)).zip(value) {
                *byte = *value;
            }
        };
        put(&mut capability.bytes, CONTROL, &self.control().to_le_bytes());
        let control = CONTROL_ENABLE | CONTROL_FIELD << CONTROL_ALLOWED_SHIFT;
        let writable = &mut capability.writable;
        writable.resize(length, 0);
        put(writable, CONTROL, &control.to_le_bytes());
        // Messages are aligned: the two lowest bits of the address are zero.
        put(writable, ADDRESS, &[0xfc, 0xff, 0xff, 0xff]);
        if self.wide {
            put(writable, ADDRESS + 4, &[0xff; 4]);
        }
        put(writable, self.data(), &[0xff; 2]);
        if self.masking {
            put(writable, self.mask(), &self.all().to_le_bytes());
        }
        capability
    }
}

/// The MSI of one function: the capability, and the sink that it drives.
///
/// It stands alone, as [`Msix`](crate::Msix) does: [`Endpoint`](crate::Endpoint) puts it into a configuration space, and who passes a device
/// through brings the accesses to the device's own capability here.
///
/// All vectors share one address; their data differ in the low bits, which are the vector's number as far as the guest allows vectors. A
/// capability without masks has its vectors unmasked, and one with masks begins with them unmasked too: unlike those of MSI-X.
pub struct Msi {
    layout: MsiLayout,
    sink: Arc<dyn VectorSink>,
    registers: Mutex<Registers>,
    /// A copy, for a device that asks with each interrupt.
    enabled: AtomicBool,
}

/// What the registers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Settings {
    enabled: bool,
    /// How many vectors: a power of two, no more than there are.
    allowed: u16,
    message: MsiMessage,
    mask: u32,
}

impl Settings {
    fn of(registers: &Registers, layout: MsiLayout) -> Self {
        let control = registers.word(CONTROL);
        let high = if layout.wide { registers.dword(ADDRESS + 4) } else { 0 };
        let address = u64::from(high) << 32 | u64::from(registers.dword(ADDRESS));
        // More than there are, and the reserved values, are as many as there are.
        let log = (control >> CONTROL_ALLOWED_SHIFT & CONTROL_FIELD).min(layout.log);
        Self {
            enabled: control & CONTROL_ENABLE != 0,
            allowed: 1 << log,
            message: MsiMessage { address, data: registers.word(layout.data()).into() },
            mask: if layout.masking { registers.dword(layout.mask()) } else { 0 },
        }
    }

    /// The message of a vector (section 7.7.1.4): the low bits of the data tell it from the others that are allowed.
    fn message_of(&self, vector: u16) -> MsiMessage {
        let low = u32::from(self.allowed - 1);
        MsiMessage { data: self.message.data & !low | u32::from(vector) & low, ..self.message }
    }

    /// From one to the other. Messages are told when they can matter: while the capability is enabled.
    fn changes_to(&self, after: &Self, layout: MsiLayout) -> Vec<VectorChange> {
        let mut changes = Vec::new();
        if self.enabled && !after.enabled {
            changes.push(VectorChange::Enable(false));
        }
        if self.allowed != after.allowed {
            changes.push(VectorChange::Allowed(after.allowed.into()));
        }
        let other = (self.message, self.allowed) != (after.message, after.allowed);
        if after.enabled && (other || !self.enabled) {
            let program = |vector| VectorChange::Program(usize::from(vector), after.message_of(vector));
            changes.extend((0..after.allowed).map(program));
        }
        for vector in (0..layout.vectors()).filter(|vector| (self.mask ^ after.mask) >> vector & 1 != 0) {
            changes.push(VectorChange::Mask(vector.into(), after.mask >> vector & 1 != 0));
        }
        if !self.enabled && after.enabled {
            changes.push(VectorChange::Enable(true));
        }
        changes
    }
}

impl Msi {
    /// A capability as after a reset. The sink is told so.
    #[must_use]
    pub fn new(layout: MsiLayout, sink: Arc<dyn VectorSink>) -> Self {
        let capability = layout.capability();
        let mut registers = Registers::default();
        registers.define(0, &capability.bytes, &capability.writable, &[]);
        let msi = Self { layout, sink, registers: Mutex::new(registers), enabled: AtomicBool::new(false) };
        msi.tell_reset();
        msi
    }

    /// How many vectors there are, and in which shape.
    #[must_use]
    pub const fn layout(&self) -> MsiLayout {
        self.layout
    }

    /// Whether the function interrupts by MSI.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// How many vectors the guest allows. A device with more uses for vectors than that shares them.
    #[must_use]
    pub fn allowed(&self) -> u16 {
        Settings::of(&lock(&self.registers), self.layout).allowed
    }

    /// The guest reads the capability, `offset` bytes from its start. ID and next pointer read zero: they are the configuration space's.
    pub fn read_capability(&self, offset: u16, data: &mut [u8]) {
        let mut registers = lock(&self.registers).clone();
        if self.layout.masking {
            let pending = self.sink.pending_word(0) & u64::from(self.layout.all());
            #[allow(clippy::cast_possible_truncation, reason = "32 vectors at most")]
            registers.set_bits(self.layout.pending(), u32::MAX, pending as u32);
        }
        registers.read(offset, data);
    }

    /// The guest writes to the capability: 1, 2 or 4 bytes that do not cross a 4-byte boundary of the configuration space, at `offset` from the
    /// capability's start, which lies on such a boundary.
    pub fn write_capability(&self, offset: u16, data: &[u8]) {
        let mut registers = lock(&self.registers);
        let before = Settings::of(&registers, self.layout);
        registers.write(offset, data);
        let after = Settings::of(&registers, self.layout);
        // A device that asks should find MSI enabled only while the sink is.
        self.enabled.fetch_and(after.enabled, Ordering::AcqRel);
        let changes = before.changes_to(&after, self.layout);
        if !changes.is_empty() {
            self.sink.apply(&changes);
        }
        self.enabled.store(after.enabled, Ordering::Release);
    }

    /// A reset of the function.
    pub fn reset(&self) {
        let mut registers = lock(&self.registers);
        registers.reset();
        self.enabled.store(false, Ordering::Release);
        self.tell_reset();
    }

    /// To a sink a reset leaves vectors masked, as MSI-X has them.
    fn tell_reset(&self) {
        let unmasked = (0..self.layout.vectors()).map(|vector| VectorChange::Mask(vector.into(), false));
        let changes: Vec<_> =
            [VectorChange::Reset, VectorChange::Allowed(1)].into_iter().chain(unmasked).collect();
        self.sink.apply(&changes);
    }
}

impl std::fmt::Debug for Msi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let settings = Settings::of(&lock(&self.registers), self.layout);
        f.debug_struct("Msi")
            .field("layout", &self.layout)
            .field("settings", &settings)
            .finish_non_exhaustive()
    }
}
