// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attributes of KVM's vGIC and ITS devices, as Linux's `arch/arm64/include/uapi/asm/kvm.h` numbers them.
//!
//! They are written out here because the KVM bindings have them only when compiled for arm64, and layout code, the fake kernel
//! and error messages want them everywhere. What each means is in the kernel's
//! `Documentation/virt/kvm/devices/arm-vgic.rst`, `arm-vgic-v3.rst` and `arm-vgic-its.rst`.

use irq_types::Gsi;

use crate::{DeviceAttr, DeviceKind};

/// `KVM_DEV_ARM_VGIC_GRP_ADDR`: where a block of registers lies in guest-physical memory; 64-bit values.
pub const GROUP_ADDR: u32 = 0;
/// `KVM_DEV_ARM_VGIC_GRP_DIST_REGS`: distributor registers; 32-bit values.
pub const GROUP_DIST_REGS: u32 = 1;
/// `KVM_DEV_ARM_VGIC_GRP_CPU_REGS`: GICv2 CPU interface registers; 32-bit values.
pub const GROUP_CPU_REGS: u32 = 2;
/// `KVM_DEV_ARM_VGIC_GRP_NR_IRQS`.
pub const GROUP_NR_IRQS: u32 = 3;
/// `KVM_DEV_ARM_VGIC_GRP_CTRL`: commands.
pub const GROUP_CTRL: u32 = 4;
/// `KVM_DEV_ARM_VGIC_GRP_REDIST_REGS`: redistributor registers; 32-bit values.
pub const GROUP_REDIST_REGS: u32 = 5;
/// `KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS`: GICv3 CPU interface system registers; 64-bit values.
pub const GROUP_CPU_SYSREGS: u32 = 6;
/// `KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO`: line levels, 32 a value.
pub const GROUP_LEVEL_INFO: u32 = 7;
/// `KVM_DEV_ARM_VGIC_GRP_ITS_REGS`: ITS registers; always 64-bit values.
pub const GROUP_ITS_REGS: u32 = 8;

const fn addr(attr: u64) -> DeviceAttr {
    DeviceAttr { group: GROUP_ADDR, attr }
}

const fn ctrl(attr: u64) -> DeviceAttr {
    DeviceAttr { group: GROUP_CTRL, attr }
}

/// `KVM_VGIC_V2_ADDR_TYPE_DIST`: the GICv2 distributor, 4 KiB at a multiple of 4 KiB.
pub const ADDR_V2_DIST: DeviceAttr = addr(0);
/// `KVM_VGIC_V2_ADDR_TYPE_CPU`: the GICv2 CPU interface, 8 KiB at a multiple of 4 KiB.
pub const ADDR_V2_CPU: DeviceAttr = addr(1);
/// `KVM_VGIC_V3_ADDR_TYPE_DIST`: the GICv3 distributor, 64 KiB at a multiple of 64 KiB.
pub const ADDR_V3_DIST: DeviceAttr = addr(2);
/// `KVM_VGIC_V3_ADDR_TYPE_REDIST`: the one redistributor region, two 64 KiB pages a vCPU.
pub const ADDR_V3_REDIST: DeviceAttr = addr(3);
/// `KVM_VGIC_ITS_ADDR_TYPE`: the ITS, 128 KiB at a multiple of 64 KiB.
pub const ADDR_ITS: DeviceAttr = addr(4);
/// `KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION`: one of several redistributor regions; see [`redist_region`].
pub const ADDR_V3_REDIST_REGION: DeviceAttr = addr(5);

/// The number of interrupts, private ones included: 64 to 992 in steps of 32; a 32-bit value. (The kernel's documentation says up to 1024;
/// the code refuses what is above 1023: Linux 6.12, `arch/arm64/kvm/vgic/vgic-kvm-device.c`, `vgic_set_common_attr`.)
pub const NR_IRQS: DeviceAttr = DeviceAttr { group: GROUP_NR_IRQS, attr: 0 };

/// `KVM_DEV_ARM_VGIC_CTRL_INIT`: finish the initialisation of a vGIC or an ITS.
pub const CTRL_INIT: DeviceAttr = ctrl(0);
/// `KVM_DEV_ARM_ITS_SAVE_TABLES`: write the ITS's tables into guest memory.
pub const CTRL_ITS_SAVE_TABLES: DeviceAttr = ctrl(1);
/// `KVM_DEV_ARM_ITS_RESTORE_TABLES`: read them back.
pub const CTRL_ITS_RESTORE_TABLES: DeviceAttr = ctrl(2);
/// `KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES`: write the LPIs' pending state into guest memory.
pub const CTRL_SAVE_PENDING_TABLES: DeviceAttr = ctrl(3);
/// `KVM_DEV_ARM_ITS_CTRL_RESET`: forget everything.
pub const CTRL_ITS_RESET: DeviceAttr = ctrl(4);

/// The value of [`ADDR_V3_REDIST_REGION`]: bits 63–52 how many redistributors, 51–16 the base address, 15–12 flags
/// (zero), 11–0 the region's index (`KVM_VGIC_V3_RDIST_*` in the kernel's header). `base` must be a multiple of 64 KiB; `count`
/// and `index` have twelve bits each. Bits that do not fit are cut off: checked layouts come from the `vgic` crate.
#[must_use]
pub const fn redist_region(base: u64, count: u32, index: u32) -> u64 {
    (((count & 0xfff) as u64) << 52) | (base & 0x000f_ffff_ffff_0000) | (index & 0xfff) as u64
}

/// A distributor register for a CPU: bits 63–32 the CPU's affinity (GICv2: its index), 31–0 the offset in bytes.
#[must_use]
pub const fn dist_reg(cpu: u32, offset: u32) -> DeviceAttr {
    DeviceAttr { group: GROUP_DIST_REGS, attr: ((cpu as u64) << 32) | offset as u64 }
}

/// A redistributor register of the CPU with this affinity.
#[must_use]
pub const fn redist_reg(mpidr: u32, offset: u32) -> DeviceAttr {
    DeviceAttr { group: GROUP_REDIST_REGS, attr: ((mpidr as u64) << 32) | offset as u64 }
}

/// An ITS register at `offset` bytes from the ITS's base.
#[must_use]
pub const fn its_reg(offset: u32) -> DeviceAttr {
    DeviceAttr { group: GROUP_ITS_REGS, attr: offset as u64 }
}

/// The kernel's name of an attribute, for messages.
#[must_use]
pub fn attr_name(kind: DeviceKind, attr: DeviceAttr) -> Option<&'static str> {
    Some(match (kind, attr) {
        (DeviceKind::GicV2, ADDR_V2_DIST) => "distributor address (ADDR/V2_DIST)",
        (DeviceKind::GicV2, ADDR_V2_CPU) => "CPU interface address (ADDR/V2_CPU)",
        (DeviceKind::GicV3, ADDR_V3_DIST) => "distributor address (ADDR/V3_DIST)",
        (DeviceKind::GicV3, ADDR_V3_REDIST) => "redistributor address (ADDR/V3_REDIST)",
        (DeviceKind::GicV3, ADDR_V3_REDIST_REGION) => "redistributor region (ADDR/V3_REDIST_REGION)",
        (DeviceKind::Its, ADDR_ITS) => "address (ADDR/ITS)",
        (_, NR_IRQS) => "number of interrupts (NR_IRQS)",
        (_, CTRL_INIT) => "initialisation (CTRL/INIT)",
        (DeviceKind::Its, CTRL_ITS_SAVE_TABLES) => "table save (CTRL/ITS_SAVE_TABLES)",
        (DeviceKind::Its, CTRL_ITS_RESTORE_TABLES) => "table restore (CTRL/ITS_RESTORE_TABLES)",
        (DeviceKind::GicV3, CTRL_SAVE_PENDING_TABLES) => "pending tables (CTRL/SAVE_PENDING_TABLES)",
        (DeviceKind::Its, CTRL_ITS_RESET) => "reset (CTRL/ITS_RESET)",
        (_, DeviceAttr { group: GROUP_DIST_REGS, .. }) => "distributor register (DIST_REGS)",
        (_, DeviceAttr { group: GROUP_CPU_REGS, .. }) => "CPU interface register (CPU_REGS)",
        (_, DeviceAttr { group: GROUP_REDIST_REGS, .. }) => "redistributor register (REDIST_REGS)",
        (_, DeviceAttr { group: GROUP_CPU_SYSREGS, .. }) => "CPU interface system register (CPU_SYSREGS)",
        (_, DeviceAttr { group: GROUP_LEVEL_INFO, .. }) => "line levels (LEVEL_INFO)",
        (_, DeviceAttr { group: GROUP_ITS_REGS, .. }) => "register (ITS_REGS)",
        _ => return None,
    })
}

/// The GSI that KVM's default routing table gives to a pin of the GIC: the same number (Linux 6.12,
/// `arch/arm64/kvm/vgic/vgic-irqfd.c`, `kvm_vgic_setup_default_irq_routing`).
#[must_use]
pub const fn default_gsi(pin: irq_types::Pin) -> Gsi {
    Gsi::new(pin.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redistributor_region_fields_lie_where_the_kernel_documents_them() {
        assert_eq!(redist_region(0x4000_0000, 123, 0), 0x07b0_0000_4000_0000);
        assert_eq!(redist_region(0x0000_0080_8000_0000, 7, 2), 0x0070_0080_8000_0002);
    }

    #[test]
    fn register_attributes_have_the_cpu_above_the_offset() {
        assert_eq!(dist_reg(0, 0x8).attr, 0x8);
        assert_eq!(redist_reg(0x0001_0203, 0xffe8).attr, 0x0001_0203_0000_ffe8);
    }
}
