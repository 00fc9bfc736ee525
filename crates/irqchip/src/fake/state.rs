// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use irq_types::MsiMessage;

use super::base_registers::INITIAL_LPI_TABLE;
use super::cpu_interface::CpuInterface;
use super::faults::Ledger;
use super::ioevent::Ioevent;
use super::irqfd::Irqfd;
use super::its::Its;
use super::lines::{Line, Lines};
use super::redist::RedistRegion;
use super::routing::Table;
use super::x86::Ioapic;
use super::{FakeHost, Fault};
use crate::{DeviceKind, Errno};

/// What a call answers.
pub(super) type Answer<T = ()> = Result<T, Errno>;

/// `VGIC_NR_PRIVATE_IRQS`: SGIs and PPIs.
pub(super) const PRIVATE: u32 = 32;

/// A vCPU, as far as interrupts are concerned.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) id: u32,
    /// `vcpu_has_run_once`.
    pub(super) has_run: bool,
    /// A thread is in `KVM_RUN` now, and with it holds the vCPU's mutex.
    pub(super) running: bool,
    /// Where this vCPU's redistributor lies, once it has a place in a region.
    pub(super) redistributor: Option<u64>,
    /// `GICR_CTLR.EnableLPIs`.
    pub(super) lpis_enabled: bool,
    pub(super) private: Vec<Line>,
    /// Private interrupts whose wire a device in the kernel drives.
    pub(super) owned: BTreeSet<u32>,
    pub(super) interface: CpuInterface,
    /// `GICR_PENDBASER`: where this vCPU's LPIs wait.
    pub(super) pendbaser: u64,
}

impl Vcpu {
    /// The affinity that KVM gives to a vCPU: four bits at level 0, eight at each level above (Linux 6.12,
    /// `arch/arm64/kvm/sys_regs.c`, `reset_mpidr`), packed as the vGIC's attributes have it.
    pub(super) const fn affinity(&self) -> u32 {
        (self.id & 0xf) | (((self.id >> 4) & 0xff) << 8) | (((self.id >> 12) & 0xff) << 16)
    }
}

/// The VM's GIC (`struct vgic_dist`).
#[derive(Debug)]
pub(super) struct Gic {
    pub(super) kind: DeviceKind,
    pub(super) distributor: Option<u64>,
    pub(super) cpu_interface: Option<u64>,
    pub(super) regions: Vec<RedistRegion>,
    /// `nr_spis`; 0 until it is set or frozen by the initialisation.
    pub(super) spis: u32,
    pub(super) initialised: bool,
    /// The addresses were checked and mapped by the first run.
    pub(super) ready: bool,
    /// `GICD_CTLR.EnableGrp1` (GICv2: `Enable`).
    pub(super) enabled: bool,
    /// `implementation_rev`, 0 until it is set or frozen by the initialisation.
    pub(super) revision: u32,
    /// Of a GICv2 userspace may set groups once it has shown that it knows of revisions (`v2_groups_user_writable`).
    pub(super) groups_writable: bool,
}

/// All that the kernel knows about a VM's interrupts.
#[derive(Debug)]
pub(super) struct State {
    pub(super) host: FakeHost,
    pub(super) ledger: Ledger,
    /// `kvm->max_vcpus`.
    pub(super) max_vcpus: u32,
    /// `kvm->vm_dead`: every further ioctl answers `EIO`.
    pub(super) dead: bool,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) gic: Option<Gic>,
    pub(super) itses: Vec<Its>,
    /// `vgic_dist.propbaser`: what all vCPUs read as `GICR_PROPBASER`.
    pub(super) propbaser: u64,
    pub(super) lines: Lines,
    pub(super) ioapic: Option<Ioapic>,
    pub(super) table: Table,
    pub(super) irqfds: Vec<Irqfd>,
    pub(super) ioevents: Vec<Ioevent>,
    /// MSIs that reached their receiver, in order: x86 has no INTIDs to count them by.
    pub(super) messages: VecDeque<MsiMessage>,
    /// How often each LPI, SPI or message was raised: merged ones count each.
    pub(super) raised: BTreeMap<super::Interrupt, u64>,
}

impl State {
    pub(super) fn new(host: FakeHost) -> Self {
        Self {
            max_vcpus: host.max_vcpus,
            host,
            ledger: Ledger::default(),
            dead: false,
            vcpus: Vec::new(),
            gic: None,
            itses: Vec::new(),
            propbaser: 0,
            lines: Lines::default(),
            ioapic: None,
            table: Table::default(),
            irqfds: Vec::new(),
            ioevents: Vec::new(),
            messages: VecDeque::new(),
            raised: BTreeMap::new(),
        }
    }

    pub(super) fn inject_fault(&mut self, fault: Fault) {
        self.ledger.inject(fault);
    }

    /// `vgic_initialized`.
    pub(super) fn initialised(&self) -> bool {
        self.gic.as_ref().is_some_and(|gic| gic.initialised)
    }

    /// `irqchip_in_kernel`.
    pub(super) fn has_irqchip(&self) -> bool {
        self.gic.is_some() || self.ioapic.is_some()
    }

    pub(super) fn vcpu_by_id(&self, id: u32) -> Option<usize> {
        self.vcpus.iter().position(|vcpu| vcpu.id == id)
    }

    pub(super) fn count_raised(&mut self, what: super::Interrupt) {
        *self.raised.entry(what).or_default() += 1;
    }

    /// `lock_all_vcpus`: register access and its like need every vCPU to be out of `KVM_RUN`.
    pub(super) fn lock_all_vcpus(&self) -> Answer {
        if self.vcpus.iter().any(|vcpu| vcpu.running) { Err(Errno::EBUSY) } else { Ok(()) }
    }

    /// `KVM_CREATE_VCPU` (Linux 6.12, `virt/kvm/kvm_main.c`, `kvm_vm_ioctl_create_vcpu`, and `arch/arm64/kvm/arm.c`,
    /// `kvm_arch_vcpu_precreate`).
    pub(super) fn create_vcpu(&mut self, id: u32) -> Answer {
        if self.vcpus.len() >= self.max_vcpus as usize {
            return Err(Errno::EINVAL);
        }
        if self.initialised() {
            return Err(Errno::EBUSY);
        }
        if id >= self.max_vcpus {
            return Err(Errno::EINVAL);
        }
        if self.vcpu_by_id(id).is_some() {
            return Err(Errno::EEXIST);
        }
        let redistributor = match &self.gic {
            Some(gic) if gic.kind == DeviceKind::GicV3 => self.claim_redistributor()?,
            _ => None,
        };
        self.vcpus.push(Vcpu {
            id,
            has_run: false,
            running: false,
            redistributor,
            lpis_enabled: false,
            private: Lines::private(),
            owned: BTreeSet::new(),
            interface: CpuInterface::new(),
            pendbaser: INITIAL_LPI_TABLE,
        });
        Ok(())
    }

    /// A first or later `KVM_RUN` up to the guest's first instruction (Linux 6.12, `arch/arm64/kvm/arm.c`,
    /// `kvm_arch_vcpu_run_pid_change`).
    pub(super) fn run_vcpu(&mut self, id: u32) -> Answer {
        let index = self.vcpu_by_id(id).ok_or(Errno::EBADF)?;
        if !self.vcpus[index].has_run {
            // A VM whose GIC cannot be mapped is beyond repair: `kvm_vgic_map_resources` calls `kvm_vm_dead`.
            if let Err(errno) = self.map_resources() {
                self.dead = true;
                return Err(errno);
            }
            if self.gic.is_some() {
                // `kvm_timer_enable`: the physical and the virtual timer take their PPIs' wires.
                self.vcpus[index].owned.extend([27, 30]);
            }
            self.vcpus[index].has_run = true;
        }
        Ok(())
    }
}
