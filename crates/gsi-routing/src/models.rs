// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The irqchip kinds that KVM has, as tables. Files are those of Linux 6.12.

use crate::{Chip, Count, IrqchipModel, KernelUser, LineRun, MsiPath, TableKind, Wired};

/// arm64: one GIC, whose pins are the SPIs. GSI i is SPI i by default; MSIs go to the ITS if the VM has one.
///
/// `lines` is the number of SPIs, NR_IRQS − 32, at most 960. The kernel takes routes to pins up to 987 whatever NR_IRQS is, and drops what
/// arrives there.
pub const ARM_GIC: IrqchipModel = IrqchipModel {
    name: "GIC",
    citation: "arch/arm64/kvm/vgic/vgic-irqfd.c (kvm_set_routing_entry, kvm_vgic_setup_default_irq_routing, kvm_set_msi), \
               include/kvm/arm_vgic.h (KVM_IRQCHIP_NUM_PINS), arch/arm64/kvm/vgic/vgic-its.c (VITS_TYPER_DEVBITS)",
    table: TableKind::Routed,
    spis: true,
    chips: &[Chip { name: "GIC", irqchip: 0, first_pin: 0, pins: 988, wired: Wired::Lines }],
    lines: &[LineRun { irqchip: 0, first_gsi: 0, first_pin: 0, count: Count::LinesPlus(0) }],
    default_routes: true,
    kernel_users: &[],
    msi: MsiPath::TableWithIts { device_id_bits: 16 },
};

/// x86 with its in-kernel irqchip: two 8259 PICs of 8 inputs and an IOAPIC of 24. GSI 0 to 15 fire a PIC and the IOAPIC, GSI 16 to 23
/// the IOAPIC. MSIs go to the local APICs.
pub const X86_PIC_IOAPIC: IrqchipModel = IrqchipModel {
    name: "PIC and IOAPIC",
    citation: "arch/x86/kvm/irq_comm.c (default_routing, kvm_set_routing_entry), arch/x86/include/uapi/asm/kvm.h \
               (KVM_IRQCHIP_PIC_MASTER, KVM_IOAPIC_NUM_PINS), arch/x86/kvm/i8254.c (pit_do_work)",
    table: TableKind::Routed,
    spis: false,
    chips: &[
        Chip { name: "master PIC", irqchip: 0, first_pin: 0, pins: 8, wired: Wired::All },
        Chip { name: "slave PIC", irqchip: 1, first_pin: 0, pins: 8, wired: Wired::All },
        Chip { name: "IOAPIC", irqchip: 2, first_pin: 0, pins: 24, wired: Wired::All },
    ],
    lines: &[
        LineRun { irqchip: 0, first_gsi: 0, first_pin: 0, count: Count::Fixed(8) },
        LineRun { irqchip: 1, first_gsi: 8, first_pin: 0, count: Count::Fixed(8) },
        LineRun { irqchip: 2, first_gsi: 0, first_pin: 0, count: Count::Fixed(24) },
    ],
    default_routes: true,
    kernel_users: &[KernelUser { gsi: 0, who: "the in-kernel PIT" }],
    msi: MsiPath::Table,
};

/// riscv64: an APLIC, whose source 0 does not exist, and IMSICs, which receive MSIs.
///
/// `lines` is the number of sources, `KVM_DEV_RISCV_AIA_CONFIG_SRCS`: sources 1 to `lines`. The default table has an entry for source 0
/// too; it is taken over like the others, and cannot be claimed.
pub const RISCV_AIA: IrqchipModel = IrqchipModel {
    name: "AIA",
    citation: "arch/riscv/kvm/vm.c (kvm_riscv_setup_default_irq_routing, kvm_set_routing_entry), arch/riscv/kvm/aia_aplic.c \
               (kvm_riscv_aia_aplic_inject), arch/riscv/include/asm/kvm_host.h (KVM_IRQCHIP_NUM_PINS)",
    table: TableKind::Routed,
    spis: false,
    chips: &[Chip { name: "APLIC", irqchip: 0, first_pin: 1, pins: 1024, wired: Wired::Lines }],
    lines: &[LineRun { irqchip: 0, first_gsi: 0, first_pin: 0, count: Count::LinesPlus(1) }],
    default_routes: true,
    kernel_users: &[],
    msi: MsiPath::Table,
};

/// POWER server: XICS (also when XIVE plays it). No table: a GSI is a source number, lines and MSIs alike, 16 to 2²⁰ − 1.
///
/// The guest sees source numbers of 24 bits (XISR), of which KVM implements 20. The hypervisor gives out all of them, so the message
/// of an MSI carries the number that the VMM allocated for it. `lines` has no meaning here.
pub const POWER_XICS: IrqchipModel = IrqchipModel {
    name: "XICS",
    citation: "arch/powerpc/kvm/book3s.c (kvm_irq_map_gsi), arch/powerpc/kvm/book3s_xics.h (KVMPPC_XICS_FIRST_IRQ, KVMPPC_XICS_NR_IRQS), \
               Documentation/virt/kvm/devices/xics.rst",
    table: TableKind::Identity,
    spis: false,
    chips: &[Chip { name: "XICS", irqchip: 0, first_pin: 16, pins: 1 << 20, wired: Wired::All }],
    lines: &[],
    default_routes: false,
    kernel_users: &[],
    msi: MsiPath::SourceNumber,
};

/// POWER embedded: Freescale's MPIC, 256 sources on irqchip 0. The table starts empty; GSI i stands for source i here as it does in
/// other VMMs. MSIs go through the table, and only their data counts.
///
/// `lines` is how many sources this version of the MPIC has.
pub const POWER_MPIC: IrqchipModel = IrqchipModel {
    name: "MPIC",
    citation: "Documentation/virt/kvm/devices/mpic.rst (IRQ Routing), arch/powerpc/kvm/mpic.c (mpic_set_default_irq_routing, \
               kvm_set_routing_entry), arch/powerpc/include/asm/kvm_host.h (KVM_IRQCHIP_NUM_PINS)",
    table: TableKind::Routed,
    spis: false,
    chips: &[Chip { name: "MPIC", irqchip: 0, first_pin: 0, pins: 256, wired: Wired::Lines }],
    lines: &[LineRun { irqchip: 0, first_gsi: 0, first_pin: 0, count: Count::Fixed(256) }],
    default_routes: false,
    kernel_users: &[],
    msi: MsiPath::Table,
};
