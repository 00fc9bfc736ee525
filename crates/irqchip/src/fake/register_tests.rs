// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers of GIC and ITS that the contract suite does not write: what Linux 6.12 makes of it (`arch/arm64/kvm/vgic/vgic-its.c`, `vgic-mmio*.c`).

use irq_types::{DeviceId, EventId, Lpi, MsiMessage};

use super::{FakeHost, FakeVm, Interrupt};
use crate::{
    AttrValue, CreateDevice, DeviceAttr, DeviceControl, DeviceKind, Errno, IrqchipReady, MsiDelivery,
    MsiInjector, arm,
};

const ITS: u64 = 0x0808_0000;
const VALID: u64 = 1 << 63;
const CTLR: u32 = 0;
const CBASER: u32 = 0x80;
const CWRITER: u32 = 0x88;
const CREADR: u32 = 0x90;
const BASER: [u32; 2] = [0x100, 0x108];
const GICR_CTLR: u32 = 0;

/// Two vCPUs, and a GIC that is ready.
struct Machine {
    vm: FakeVm,
    gic: Box<dyn DeviceControl>,
    its: Option<Box<dyn DeviceControl>>,
}

impl Machine {
    fn new(kind: DeviceKind, with_its: bool) -> Self {
        let host = FakeHost { gic_v2: true, ..FakeHost::arm64_gicv3() };
        let vm = host.vm();
        let gic = vm.create_device(kind).unwrap();
        vm.create_vcpu(0).unwrap();
        vm.create_vcpu(1).unwrap();
        let its = with_its.then(|| {
            let its = vm.create_device(DeviceKind::Its).unwrap();
            its.set_attr(arm::ADDR_ITS, AttrValue::U64(ITS)).unwrap();
            its
        });
        IrqchipReady::init_vgic(&*gic, 224).unwrap();
        Self { vm, gic, its }
    }

    /// With an ITS whose queue and tables are there.
    fn with_its() -> Self {
        let machine = Self::new(DeviceKind::GicV3, true);
        for register in [CBASER, BASER[0], BASER[1]] {
            machine.set_its(register, VALID).unwrap();
        }
        machine
    }

    fn its(&self, offset: u32) -> u64 {
        match self.its.as_ref().unwrap().get_attr(arm::its_reg(offset), AttrValue::U64(0)).unwrap() {
            AttrValue::U64(value) => value,
            other => panic!("{other:?}"),
        }
    }

    fn set_its(&self, offset: u32, value: u64) -> Result<(), Errno> {
        self.its.as_ref().unwrap().set_attr(arm::its_reg(offset), AttrValue::U64(value)).map_err(|e| e.errno)
    }

    fn word(&self, attr: DeviceAttr) -> u32 {
        match self.gic.get_attr(attr, AttrValue::U32(0)).unwrap() {
            AttrValue::U32(value) => value,
            other => panic!("{other:?}"),
        }
    }

    fn set_word(&self, attr: DeviceAttr, value: u32) {
        self.gic.set_attr(attr, AttrValue::U32(value)).unwrap();
    }

    /// What a word holds after this was written.
    fn keeps(&self, attr: DeviceAttr, value: u32) -> u32 {
        self.set_word(attr, value);
        self.word(attr)
    }

    /// Event 0 of this device is LPI 8192 of vCPU 0.
    fn map(&self, device: u32) {
        self.vm.guest().map_event(DeviceId::new(device), EventId::new(0), Lpi::new(8192).unwrap()).unwrap();
    }

    fn send(&self, device: Option<u32>) -> Result<MsiDelivery, Errno> {
        let message = MsiMessage { address: ITS + 0x1_0040, data: 0 };
        self.vm.signal_msi(message, device.map(DeviceId::new)).map_err(|e| e.errno)
    }

    fn take_lpi(&self) -> bool {
        let lpi = Interrupt::Intid(Lpi::new(8192).unwrap().intid());
        self.vm.guest().take_all(9) == [lpi]
    }
}

#[test]
fn an_its_takes_queue_and_tables_while_it_is_disabled() {
    let machine = Machine::new(DeviceKind::GicV3, true);
    let keeps = |register, value| {
        machine.set_its(register, value).unwrap();
        machine.its(register)
    };
    let quiescent = || machine.its(CTLR) >> 31 == 1;
    assert_eq!(keeps(CBASER, VALID | 0x1234_f000), VALID | 0x1234_0000, "on 64 KiB");
    // Of one page: offsets in it, of whole commands.
    for (value, kept) in [(0xfff, 0xfe0), (0x1000, 0xfe0), (0x7f, 0x60)] {
        assert_eq!(keeps(CWRITER, value), kept, "{value:#x}");
    }
    assert!(!quiescent());
    assert_eq!((machine.set_its(CREADR, 0x1000), machine.its(CREADR)), (Err(Errno::EINVAL), 0));
    assert_eq!(keeps(CREADR, 0x7f), 0x60);
    assert!(quiescent());
    assert_eq!(keeps(CBASER, VALID | 0xff), VALID | 0xff);
    assert_eq!((machine.its(CWRITER), machine.its(CREADR)), (0, 0), "another queue is empty");
    assert_eq!(keeps(CWRITER, 0xf_ffe0), 0xf_ffe0, "of 256 pages");

    // Type and entry size are what they are; only the device table may have two levels.
    let fixed = BASER.map(|register| machine.its(register) & (0x7 << 56 | 0x1f << 48));
    assert_eq!(fixed, [1 << 56 | 7 << 48, 4 << 56 | 7 << 48]);
    for (n, indirect) in [(0, 1), (1, 0)] {
        let kept = keeps(BASER[n], VALID | 1 << 62 | 0x7 << 56 | 0x1f << 48);
        assert_eq!(kept, VALID | indirect << 62 | fixed[n], "table {n}");
        assert_eq!(keeps(BASER[n], VALID), VALID | fixed[n], "table {n}");
    }
    assert_eq!(keeps(0x110, u64::MAX), 0, "there are two");

    let before = [CBASER, BASER[0], BASER[1], CREADR].map(|register| machine.its(register));
    assert_eq!(keeps(CTLR, 1) & 1, 1);
    for register in [CBASER, BASER[0], BASER[1]] {
        machine.set_its(register, 0).unwrap();
    }
    assert_eq!(machine.set_its(CREADR, 0x20), Err(Errno::EBUSY));
    assert_eq!([CBASER, BASER[0], BASER[1], CREADR].map(|register| machine.its(register)), before);
    assert_eq!(keeps(CTLR, 0) & 1, 0);
    let its = machine.its.as_ref().unwrap();
    its.set_attr(arm::CTRL_ITS_RESET, AttrValue::None).unwrap();
    assert_eq!((machine.its(CBASER), BASER.map(|register| machine.its(register))), (0, fixed));
}

#[test]
fn each_of_queue_and_tables_is_needed_to_enable_an_its() {
    for missing in [CBASER, BASER[0], BASER[1]] {
        let machine = Machine::with_its();
        machine.set_its(missing, 0).unwrap();
        machine.set_its(CTLR, 1).unwrap();
        assert_eq!(machine.its(CTLR) & 1, 0, "{missing:#x}");
        machine.set_its(missing, VALID).unwrap();
        machine.set_its(CTLR, 1).unwrap();
        assert_eq!(machine.its(CTLR) & 1, 1, "{missing:#x}");
    }
}

#[test]
fn what_is_mapped_goes_with_a_table_that_is_not_valid() {
    for table in BASER {
        let machine = Machine::with_its();
        machine.map(5);
        for (value, answer) in [(VALID | 0x10_0000, MsiDelivery::Delivered), (0, MsiDelivery::Blocked)] {
            machine.set_its(CTLR, 0).unwrap();
            machine.set_its(table, value).unwrap();
            machine.set_its(table, VALID).unwrap();
            assert_eq!(machine.send(Some(5)), Err(Errno::EBUSY));
            machine.set_its(CTLR, 1).unwrap();
            assert_eq!(machine.send(Some(5)), Ok(answer), "{table:#x}");
        }
    }
}

#[test]
fn lpis_that_wait_are_dropped_when_their_vcpu_disables_lpis() {
    let machine = Machine::with_its();
    machine.map(0);
    let ctlr = arm::redist_reg(0, GICR_CTLR);
    assert_eq!(machine.send(Some(0)), Ok(MsiDelivery::Delivered));
    assert_eq!(
        machine.send(None),
        Ok(MsiDelivery::Delivered),
        "found in the cache, by a device ID that is not given"
    );
    // Nothing changes for who has none enabled.
    machine.set_word(arm::redist_reg(1, GICR_CTLR), 0);
    assert_eq!(machine.send(None), Ok(MsiDelivery::Delivered));
    assert!(machine.take_lpi());
    machine.send(Some(0)).unwrap();
    assert_eq!(machine.keeps(ctlr, 0) & 1, 0);
    assert!(!machine.take_lpi());
    assert_eq!(machine.send(Some(0)), Err(Errno::EBUSY));
    assert_eq!(machine.keeps(ctlr, 1) & 1, 1);
    assert_eq!(machine.send(None), Err(Errno::EINVAL), "the cache is empty");
    assert_eq!(machine.send(Some(0)), Ok(MsiDelivery::Delivered));
    assert!(machine.take_lpi());
    // So it is after the ITS was disabled.
    machine.set_its(CTLR, 0).unwrap();
    machine.set_its(CTLR, 1).unwrap();
    assert_eq!(machine.send(None), Err(Errno::EINVAL));

    let without = Machine::new(DeviceKind::GicV3, false);
    assert_eq!(without.keeps(ctlr, 1) & 1, 0, "without an ITS there are none");
}

#[test]
fn lpis_have_one_property_table_and_a_pending_table_for_each_vcpu() {
    let machine = Machine::with_its();
    let (propbaser, pendbaser) =
        ([0, 1].map(|cpu| arm::redist_reg(cpu, 0x70)), [0, 1].map(|cpu| arm::redist_reg(cpu, 0x78)));
    let high = arm::redist_reg(0, 0x74);
    machine.set_word(propbaser[1], 0x1111_000f);
    machine.set_word(high, 0x12);
    machine.set_word(pendbaser[0], 0x2222_0000);
    machine.set_word(pendbaser[1], 0x3333_0000);
    assert_eq!(propbaser.map(|attr| machine.word(attr)), [0x1111_000f; 2]);
    assert_eq!(machine.word(high), 0x12);
    assert_eq!(pendbaser.map(|attr| machine.word(attr)), [0x2222_0000, 0x3333_0000]);
    // Not while LPIs are enabled.
    machine.set_word(arm::redist_reg(0, GICR_CTLR), 1);
    assert_eq!((machine.keeps(propbaser[0], 0), machine.keeps(pendbaser[0], 0)), (0x1111_000f, 0x2222_0000));
    assert_eq!((machine.keeps(propbaser[1], 0), machine.keeps(pendbaser[1], 0)), (0, 0));
}

#[test]
fn an_spi_is_routed_by_three_levels_of_affinity() {
    let machine = Machine::new(DeviceKind::GicV3, false);
    let irouter = |intid: u32, half: u32| arm::dist_reg(0, 0x6000 + 8 * intid + 4 * half);
    assert_eq!(machine.keeps(irouter(32, 0), u32::MAX), 0x00ff_ffff);
    assert_eq!(machine.keeps(irouter(32, 1), u32::MAX), 0);
    assert_eq!(machine.word(irouter(32, 0)), 0x00ff_ffff);
    assert_eq!((machine.word(irouter(33, 0)), machine.keeps(irouter(31, 0), 1)), (0, 0), "of SPIs only");
}

#[test]
fn a_gicv2s_targets_are_cpus_that_there_are_and_groups_wait_for_the_revision() {
    let machine = Machine::new(DeviceKind::GicV2, false);
    for cpu in 0..2 {
        let own = 0x0101_0101 << cpu;
        for offset in [0x800, 0x81c] {
            assert_eq!(machine.word(arm::dist_reg(cpu, offset)), own);
            assert_eq!(machine.keeps(arm::dist_reg(cpu, offset), 0), own, "nobody else's");
        }
    }
    assert_eq!(machine.word(arm::dist_reg(0, 0x820)), 0);
    assert_eq!(machine.keeps(arm::dist_reg(0, 0x820), 0xff02_01fc), 0x0302_0100);
    let (group, iidr) = (arm::dist_reg(0, 0x84), arm::dist_reg(0, 8));
    assert_eq!(machine.keeps(group, 5), 0);
    machine.keeps(iidr, machine.word(iidr));
    assert_eq!((machine.keeps(group, 5), machine.keeps(group, 6)), (5, 6));
}

#[test]
fn bits_are_set_by_one_register_and_cleared_by_another() {
    let (v2, v3) = (Machine::new(DeviceKind::GicV2, false), Machine::new(DeviceKind::GicV3, false));
    // Enabled, pending (which a GICv3 restores as a whole), active.
    for (machine, set, clear) in [
        (&v2, 0x104, 0x184),
        (&v2, 0x204, 0x284),
        (&v2, 0x304, 0x384),
        (&v3, 0x104, 0x184),
        (&v3, 0x304, 0x384),
    ] {
        let (set, clear) = (arm::dist_reg(0, set), arm::dist_reg(0, clear));
        assert_eq!((machine.word(set), machine.keeps(set, 0x8000_0003)), (0, 0x8000_0003));
        assert_eq!(machine.keeps(set, 4), 0x8000_0007);
        assert_eq!(machine.keeps(clear, 0x8000_0001), 6);
        assert_eq!(machine.word(set), 6);
    }
    // Five bits of priority.
    assert_eq!(v3.keeps(arm::dist_reg(0, 0x420), 0xff07_0880), 0xf800_0880);
}

#[test]
fn a_cpu_interface_keeps_what_it_is_given_for_each_vcpu() {
    let machine = Machine::new(DeviceKind::GicV2, false);
    for (cpu, value) in [(0, 0xf0), (1, 0xe0)] {
        let pmr = DeviceAttr { group: arm::GROUP_CPU_REGS, attr: cpu << 32 | 4 };
        assert_eq!((machine.word(pmr), machine.keeps(pmr, value)), (0, value));
    }
    let machine = Machine::new(DeviceKind::GicV3, false);
    let register =
        |cpu: u64, encoding| DeviceAttr { group: arm::GROUP_CPU_SYSREGS, attr: cpu << 32 | encoding };
    // ICC_PMR_EL1, ICC_BPR0, ICC_AP0R0 and 3, ICC_AP1R0 and 3, ICC_BPR1, ICC_CTLR, ICC_SRE, ICC_IGRPEN0 and 1.
    let known = [0xc230, 0xc643, 0xc644, 0xc647, 0xc648, 0xc64b, 0xc663, 0xc664, 0xc665, 0xc666, 0xc667];
    for encoding in known {
        assert_eq!(machine.gic.has_attr(register(0, encoding)), Ok(true), "{encoding:#x}");
        for (cpu, value) in [(0, 1 << 40 | 1), (1, 2)] {
            machine.gic.set_attr(register(cpu, encoding), AttrValue::U64(value)).unwrap();
        }
        for (cpu, value) in [(0, 1 << 40 | 1), (1, 2)] {
            let kept = machine.gic.get_attr(register(cpu, encoding), AttrValue::U64(0));
            assert_eq!(kept, Ok(AttrValue::U64(value)), "{encoding:#x}");
        }
    }
    // The neighbours of each run.
    for encoding in [0xc22f, 0xc231, 0xc642, 0xc64c, 0xc662, 0xc668] {
        assert_eq!(machine.gic.has_attr(register(0, encoding)), Ok(false), "{encoding:#x}");
        let (set, get) = (
            machine.gic.set_attr(register(0, encoding), AttrValue::U64(0)),
            machine.gic.get_attr(register(0, encoding), AttrValue::U64(0)),
        );
        assert_eq!(set.map_err(|e| e.errno), Err(Errno::ENXIO), "{encoding:#x}");
        assert_eq!(get.map_err(|e| e.errno), Err(Errno::ENXIO), "{encoding:#x}");
    }
}
