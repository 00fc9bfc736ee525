// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeSet;

use irq_types::{DeviceId, EventId, Lpi};
use irqchip::{AttrValue, DeviceControl, DeviceKind, Errno, IoAddress, arm};
use kvm_bindings::{KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_vcpu_init};
use kvm_ioctls::{VcpuFd, VmFd};

use super::super::fixture::{CPU_INTERFACE, long, word};
use super::super::kvm_memory::Memory;
use super::super::{Irqchip, Taken};
use super::{Sign, run};

/// Guest memory, and what lies in it.
const RAM: u64 = 0x8000_0000;
const RAM_SIZE: usize = 0x20_0000;
const QUEUE: u64 = RAM + 0x1_0000;
const DEVICES: u64 = RAM + 0x2_0000;
const COLLECTIONS: u64 = RAM + 0x3_0000;
const PROPERTIES: u64 = RAM + 0x4_0000;
const PENDING: u64 = RAM + 0x5_0000;
const ITTS: u64 = RAM + 0x10_0000;

/// Where the guest reports: nothing is there.
const REPORT: u64 = 0x0900_0000;
const TAKEN: u64 = REPORT;
const ENDED: u64 = REPORT + 8;
const IDLE: u64 = REPORT + 16;

/// The program. x19 is the report's address, x20 the GICv2's CPU interface.
const CODE: [u32; 39] = [
    // idle:
    0xb900_1260, // str w0, [x19, #16]
    0x17ff_ffff, // b idle
    // gicv3: every priority, group 1
    0xd280_1fe1, // mov x1, #0xff
    0xd518_4601, // msr ICC_PMR_EL1, x1
    0xd280_0021, // mov x1, #1
    0xd518_cce1, // msr ICC_IGRPEN1_EL1, x1
    0xd503_3fdf, // isb
    // gicv3_next: acknowledge, report, end unless it was special (1020 to 1023), report
    0xd538_cc00, // mrs x0, ICC_IAR1_EL1
    0xd503_3f9f, // dsb sy
    0xb900_0260, // str w0, [x19]
    0x510f_f002, // sub w2, w0, #1020
    0x7100_105f, // cmp w2, #4
    0x54ff_ff63, // b.lo gicv3_next
    0xd518_cc20, // msr ICC_EOIR1_EL1, x0
    0xd503_3fdf, // isb
    0xb900_0a60, // str w0, [x19, #8]
    0x17ff_fff7, // b gicv3_next
    // gicv2: every priority (GICC_PMR), group 0 (GICC_CTLR)
    0x5280_1fe1, // mov w1, #0xff
    0xb900_0681, // str w1, [x20, #4]
    0x5280_0021, // mov w1, #1
    0xb900_0281, // str w1, [x20]
    // gicv2_next: the same with GICC_IAR and GICC_EOIR
    0xb940_0e80, // ldr w0, [x20, #12]
    0xd503_3f9f, // dsb sy
    0x1200_2402, // and w2, w0, #0x3ff
    0xb900_0262, // str w2, [x19]
    0x710f_f05f, // cmp w2, #1020
    0x54ff_ff62, // b.hs gicv2_next
    0xb900_1280, // str w0, [x20, #16]
    0xd503_3f9f, // dsb sy
    0xb900_0a62, // str w2, [x19, #8]
    0x17ff_fff7, // b gicv2_next
    // write1, write2, write4, write8: x3 to x2
    0x3900_0043, // strb w3, [x2]
    0x17ff_ffe0, // b idle
    0x7900_0043, // strh w3, [x2]
    0x17ff_ffde, // b idle
    0xb900_0043, // str w3, [x2]
    0x17ff_ffdc, // b idle
    0xf900_0043, // str x3, [x2]
    0x17ff_ffda, // b idle
];

/// Entries, in instructions.
const ENTRY_IDLE: u64 = 0;
const ENTRY_GICV3: u64 = 2;
const ENTRY_GICV2: u64 = 17;
const ENTRY_WRITES: u64 = 31;

/// The register numbers of `KVM_SET_ONE_REG`: x0 to x30 and pc lie in `struct user_pt_regs` in units of four bytes.
const fn core(register: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (register * 2)
}
const PC: u64 = 32;

fn get(vcpu: &VcpuFd, register: u64) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(core(register), &mut bytes).map_err(|e| Errno::new(e.errno()))?;
    Ok(u64::from_le_bytes(bytes))
}

fn set(vcpu: &VcpuFd, register: u64, value: u64) -> Result<(), Errno> {
    vcpu.set_one_reg(core(register), &value.to_le_bytes()).map_err(|e| Errno::new(e.errno()))?;
    Ok(())
}

/// The guest of one VM.
#[derive(Debug)]
pub(in super::super) struct Guest {
    memory: Memory,
    init: kvm_vcpu_init,
    initialised: BTreeSet<u32>,
    serving: bool,
    its_enabled: bool,
    devices: BTreeSet<DeviceId>,
}

impl Guest {
    pub(in super::super) fn new(vm: &VmFd) -> Self {
        let memory = Memory::attach(vm, RAM, RAM_SIZE);
        let code: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(RAM, &code);
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).unwrap();
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        Self {
            memory,
            init,
            initialised: BTreeSet::new(),
            serving: false,
            its_enabled: false,
            devices: BTreeSet::new(),
        }
    }

    /// `KVM_ARM_VCPU_INIT`, and the registers that the program expects.
    pub(in super::super) fn prepare(&mut self, id: u32, vcpu: &VcpuFd) -> Result<(), Errno> {
        if self.initialised.contains(&id) {
            return Ok(());
        }
        vcpu.vcpu_init(&self.init).map_err(|e| Errno::new(e.errno()))?;
        set(vcpu, 19, REPORT)?;
        set(vcpu, 20, CPU_INTERFACE)?;
        self.initialised.insert(id);
        Ok(())
    }

    /// Runs the program from `entry` until it is idle, and puts the registers back. The accesses before that.
    fn excursion(
        &mut self,
        id: u32,
        vcpu: &mut VcpuFd,
        entry: u64,
        x2: u64,
        x3: u64,
    ) -> Result<Vec<u64>, Errno> {
        self.prepare(id, vcpu)?;
        let saved = [(2, get(vcpu, 2)?), (3, get(vcpu, 3)?), (PC, get(vcpu, PC)?)];
        set(vcpu, 2, x2)?;
        set(vcpu, 3, x3)?;
        set(vcpu, PC, RAM + 4 * entry)?;
        let mut seen = Vec::new();
        loop {
            match run(vcpu)? {
                Sign::Mmio { address: IDLE, .. } => break,
                Sign::Mmio { address, .. } => seen.push(address),
                sign => panic!("{sign:?}"),
            }
        }
        for (register, value) in saved {
            set(vcpu, register, value)?;
        }
        Ok(seen)
    }

    pub(in super::super) fn run(&mut self, id: u32, vcpu: &mut VcpuFd) -> Result<(), Errno> {
        self.excursion(id, vcpu, ENTRY_IDLE, 0, 0).map(|_| ())
    }

    pub(in super::super) fn write(
        &mut self,
        vcpu: &mut VcpuFd,
        address: IoAddress,
        value: u64,
        length: u32,
    ) -> bool {
        let IoAddress::Mmio(address) = address else { panic!("arm64 has no ports") };
        let entry = ENTRY_WRITES + 2 * u64::from(length.trailing_zeros());
        self.excursion(0, vcpu, entry, address, value).unwrap().is_empty()
    }

    pub(in super::super) fn take(&mut self, vcpu: &mut VcpuFd, irqchip: Irqchip) -> Option<Taken> {
        self.prepare(0, vcpu).unwrap();
        if !self.serving {
            let entry = match irqchip {
                Irqchip::Gic(DeviceKind::GicV2) => ENTRY_GICV2,
                _ => ENTRY_GICV3,
            };
            set(vcpu, PC, RAM + 4 * entry).unwrap();
            self.serving = true;
        }
        let Ok(Sign::Mmio { address: TAKEN, value }) = run(vcpu) else { panic!("no report") };
        match u32::try_from(value).unwrap() {
            1020..=1023 => None,
            private @ 0..32 => Some(Taken::Private(private)),
            spi @ 32..1020 => Some(Taken::Line(spi - 32)),
            lpi => Some(Taken::Lpi(lpi)),
        }
    }

    pub(in super::super) fn awaits_end(_vcpu: &VcpuFd, _taken: Taken) -> bool {
        true
    }

    pub(in super::super) fn end(vcpu: &mut VcpuFd, taken: Taken) {
        let intid = match taken {
            Taken::Line(pin) => u64::from(pin) + 32,
            Taken::Private(intid) | Taken::Lpi(intid) => u64::from(intid),
            Taken::Message(_) => panic!("arm64 has LPIs"),
        };
        assert_eq!(run(vcpu), Ok(Sign::Mmio { address: ENDED, value: intid }));
    }

    /// What a driver does, through the registers that userspace has for save and restore.
    pub(in super::super) fn map_event(
        &mut self,
        gic: &dyn DeviceControl,
        its: &dyn DeviceControl,
        device: DeviceId,
        event: EventId,
        lpi: Lpi,
    ) {
        const VALID: u64 = 1 << 63;
        let gits = |offset, value| its.set_attr(arm::its_reg(offset), long(value)).unwrap();
        if !self.its_enabled {
            let gicr = |offset, value| gic.set_attr(arm::redist_reg(0, offset), word(value)).unwrap();
            let low = |address: u64| u32::try_from(address & 0xffff_ffff).unwrap();
            // INTIDs of 16 bits. The base registers' upper halves stay zero.
            gicr(0x70, low(PROPERTIES) | 15);
            gicr(0x78, low(PENDING));
            gicr(0, 1);
            gic.set_attr(arm::dist_reg(0, 0), word(2)).unwrap();
            // One page of 64 KiB for each table, and a queue of sixteen of 4 KiB.
            gits(0x100, VALID | DEVICES | (2 << 8));
            gits(0x108, VALID | COLLECTIONS | (2 << 8));
            gits(0x80, VALID | QUEUE | 15);
            gits(0, 1);
            // MAPC: collection 0 is vCPU 0.
            self.command(its, [0x09, 0, VALID, 0]);
            self.its_enabled = true;
        }
        let id = u64::from(device.get()) << 32;
        let number = u64::from(event.get());
        if self.devices.insert(device) {
            // MAPD: 32 events.
            let itt = ITTS + 0x1000 * (self.devices.len() as u64);
            self.command(its, [id | 0x08, 4, VALID | itt, 0]);
        }
        // MAPTI to collection 0.
        self.command(its, [id | 0x0a, number | (u64::from(lpi.get()) << 32), 0, 0]);
        self.enable_lpi(its, device, event, lpi, true);
    }

    pub(in super::super) fn enable_lpi(
        &self,
        its: &dyn DeviceControl,
        device: DeviceId,
        event: EventId,
        lpi: Lpi,
        enabled: bool,
    ) {
        // Some priority, bit 1 that is one, and the enable bit.
        self.memory.write(PROPERTIES + u64::from(lpi.get()) - 8192, &[0xa2 | u8::from(enabled)]);
        // INV
        self.command(its, [(u64::from(device.get()) << 32) | 0x0c, event.get().into(), 0, 0]);
    }

    pub(in super::super) fn unmap_event(&self, its: &dyn DeviceControl, device: DeviceId, event: EventId) {
        // DISCARD
        self.command(its, [(u64::from(device.get()) << 32) | 0x0f, event.get().into(), 0, 0]);
    }

    fn command(&self, its: &dyn DeviceControl, command: [u64; 4]) {
        let AttrValue::U64(at) = its.get_attr(arm::its_reg(0x88), long(0)).unwrap() else {
            panic!("CWRITER")
        };
        let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write(QUEUE + at, &bytes);
        its.set_attr(arm::its_reg(0x88), long(at + 32)).unwrap();
    }
}
