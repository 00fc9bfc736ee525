// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irqchip::{AttrValue, DeviceAttr, DeviceControl, DeviceKind, Error, IrqchipReady, arm};

use crate::{GicConfig, GicLayout, V2mFrame};

/// A living GIC. Nothing about it can be configured any more.
#[derive(Debug)]
pub struct InitializedVgic {
    gic: Box<dyn DeviceControl>,
    its: Vec<Box<dyn DeviceControl>>,
    layout: GicLayout,
    ready: IrqchipReady,
}

impl InitializedVgic {
    pub(crate) fn new(
        gic: Box<dyn DeviceControl>,
        its: Vec<Box<dyn DeviceControl>>,
        layout: GicLayout,
        ready: IrqchipReady,
    ) -> Self {
        Self { gic, its, layout, ready }
    }

    /// Proof that interrupts can be routed and irqfds armed from now on.
    #[must_use]
    pub const fn ready(&self) -> &IrqchipReady {
        &self.ready
    }

    /// What it is.
    #[must_use]
    pub const fn config(&self) -> &GicConfig {
        self.layout.config()
    }

    /// Where it is.
    #[must_use]
    pub const fn layout(&self) -> &GicLayout {
        &self.layout
    }

    /// The frame that the VMM emulates, if MSIs travel that way.
    #[must_use]
    pub fn v2m_frame(&self) -> Option<V2mFrame> {
        self.layout.v2m_frame()
    }

    /// Reads a 32-bit register at `offset` bytes into the distributor, for looking inside.
    ///
    /// # Errors
    /// When the kernel refuses: `EBUSY` while a vCPU runs, `ENXIO` if there is no such register.
    pub fn read_distributor(&self, offset: u32) -> Result<u32, Error> {
        read_u32(&*self.gic, arm::dist_reg(0, offset))
    }

    /// Reads a 32-bit register at `offset` bytes into the redistributor of the vCPU whose affinity is `affinity`: bits 31–24
    /// Aff3, 23–16 Aff2, 15–8 Aff1, 7–0 Aff0, which is not where MPIDR_EL1 has Aff3. A 64-bit register is read in two halves.
    ///
    /// # Errors
    /// When the kernel refuses: `EBUSY` while a vCPU runs, `EINVAL` if there is no such vCPU, `ENXIO` if there is no such
    /// register or the GIC is a GICv2.
    pub fn read_redistributor(&self, affinity: u32, offset: u32) -> Result<u32, Error> {
        read_u32(&*self.gic, arm::redist_reg(affinity, offset))
    }

    /// Reads a register at `offset` bytes into the ITS with this index. `None` if there is no such ITS.
    ///
    /// # Errors
    /// When the kernel refuses: `EBUSY` while a vCPU runs, `ENXIO` if there is no such register.
    pub fn read_its(&self, index: usize, offset: u32) -> Option<Result<u64, Error>> {
        let its = self.its.get(index)?;
        Some(its.get_attr(arm::its_reg(offset), AttrValue::U64(0)).map(as_u64))
    }

    /// Has the kernel write the mappings of the ITS with this index into the guest's memory, where the guest's `GITS_BASER<n>` say. `None` if there is no
    /// such ITS.
    ///
    /// # Errors
    /// When the kernel refuses: `EBUSY` while a vCPU runs, `EACCES` if a GICv4 delivers some of them, `EFAULT` if a table is not in memory.
    pub fn save_its_tables(&self, index: usize) -> Option<Result<(), Error>> {
        let its = self.its.get(index)?;
        Some(its.set_attr(arm::CTRL_ITS_SAVE_TABLES, AttrValue::None))
    }

    /// Which device the kernel has.
    #[must_use]
    pub fn device_kind(&self) -> DeviceKind {
        self.gic.kind()
    }
}

fn read_u32(device: &dyn DeviceControl, attr: DeviceAttr) -> Result<u32, Error> {
    // The backend answers in the variant asked for, so the high half is zero.
    device.get_attr(attr, AttrValue::U32(0)).map(|value| (as_u64(value) & 0xffff_ffff) as u32)
}

fn as_u64(value: AttrValue) -> u64 {
    match value {
        AttrValue::None => 0,
        AttrValue::U32(n) => u64::from(n),
        AttrValue::U64(n) => n,
    }
}
