// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ITS's queue and tables, as its registers tell of them (Linux 6.12, `arch/arm64/kvm/vgic/vgic-its.c`).

use irqchip::{AttrValue, Errno, MsiDelivery, arm};

use super::Host;
use super::fixture::{Machine, refusal};

const CTLR: u32 = 0;
const IIDR: u32 = 4;
const TYPER: u32 = 8;
const CBASER: u32 = 0x80;
const CWRITER: u32 = 0x88;
const CREADR: u32 = 0x90;
/// Of devices and of collections.
const BASER: [u32; 2] = [0x100, 0x108];
const VALID: u64 = 1 << 63;
const INDIRECT: u64 = 1 << 62;
/// The type of a table, devices or collections, and the size of an entry, less one: eight bytes.
const FIXED: [u64; 2] = [(1 << 56) | (7 << 48), (4 << 56) | (7 << 48)];
/// … where they lie.
const READ_ONLY: u64 = (7 << 56) | (0x1f << 48);
/// Pages of 64 KiB.
const PAGES: u64 = 2 << 8;
/// Inner shareable, inner caches write back.
const SHARED: u64 = 1 << 10;
const CACHED: u64 = 3 << 59;
const LPI: u32 = 8192;

fn enabled(machine: &Machine) -> bool {
    machine.get_its(CTLR).unwrap() & 1 != 0
}

/// Whether no command waits.
fn quiescent(machine: &Machine) -> bool {
    machine.get_its(CTLR).unwrap() & (1 << 31) != 0
}

/// What a base register keeps of shareability and cacheability, whatever else it holds: nothing is outer shareable, nothing uncached, and
/// outer caches are not told apart.
const ATTRIBUTES: [(u64, u64); 9] = [
    (0, CACHED),
    (1 << 10, 1 << 10 | CACHED),
    (2 << 10, 1 << 10 | CACHED),
    (3 << 10, 3 << 10 | CACHED),
    (1 << 59, CACHED),
    (2 << 59, 2 << 59),
    (7 << 59, 7 << 59),
    (1 << 53, 1 << 53 | CACHED),
    (2 << 53, CACHED),
];

/// Product 'K', Arm's; one format of tables. A page of registers says which part it is.
pub fn an_its_says_what_it_is(host: &dyn Host) {
    let machine = Machine::with_its(host);
    let identification = [
        (0xffd0, 0x40),
        (0xffd4, 0),
        (0xffe0, 0x92),
        (0xffe4, 0xb4),
        (0xffe8, 0x3b),
        (0xffec, 0),
        (0xfff0, 0x0d),
        (0xfff4, 0xf0),
        (0xfff8, 0x05),
        (0xfffc, 0xb1),
    ];
    // 16 bits of device ID and of event ID, eight bytes an event, physical LPIs.
    for (offset, value) in identification.into_iter().chain([(TYPER, 15 << 13 | 15 << 8 | 7 << 4 | 1)]) {
        assert_eq!(machine.get_its(offset), Ok(value), "{offset:#x}");
        assert_eq!(machine.its_keeps(offset, !value), value, "{offset:#x}");
    }
    assert_eq!(machine.get_its(IIDR), Ok(0x4b00_043b));
    assert_eq!(machine.its_keeps(IIDR, 0), 0x4b00_043b);
}

/// It lies on 64 KiB and is as long as CBASER says in its lowest byte, in pages of 4 KiB, less one. A new one is empty. CWRITER and CREADR
/// are multiples of 32 in it: beyond it, one is ignored and the other refused.
pub fn an_its_has_a_queue(host: &dyn Host) {
    let machine = Machine::with_its(host);
    assert_eq!([CBASER, CWRITER, CREADR].map(|offset| machine.get_its(offset)), [Ok(0); 3]);
    for (written, kept) in ATTRIBUTES {
        assert_eq!(machine.its_keeps(CBASER, VALID | written), VALID | kept, "{written:#x}");
    }
    assert_eq!(machine.its_keeps(CBASER, VALID | 0x1234_f000), VALID | CACHED | 0x1234_0000);
    for (written, kept) in [(0xfff, 0xfe0), (0x1000, 0xfe0), (0x7f, 0x60), (1 << 40 | 0x80, 0x80)] {
        assert_eq!(machine.its_keeps(CWRITER, written), kept, "{written:#x}");
    }
    assert!(!quiescent(&machine));
    assert_eq!(machine.set_its(CREADR, 0x1000), Err(Errno::EINVAL));
    assert_eq!(machine.get_its(CREADR), Ok(0));
    assert_eq!(machine.its_keeps(CREADR, 0x9f), 0x80);
    assert!(quiescent(&machine));
    assert_eq!(machine.its_keeps(CBASER, VALID | 0xff), VALID | CACHED | 0xff);
    assert_eq!((machine.get_its(CWRITER), machine.get_its(CREADR)), (Ok(0), Ok(0)));
    assert_eq!(machine.its_keeps(CWRITER, 0xf_ffe0), 0xf_ffe0);
}

/// Two of them, whose type and entries are what they are. Only the table of devices may have two levels.
pub fn an_its_has_two_tables(host: &dyn Host) {
    let machine = Machine::with_its(host);
    for (n, levels) in [(0, INDIRECT), (1, 0)] {
        let keeps = |value| machine.its_keeps(BASER[n], value);
        assert_eq!(machine.get_its(BASER[n]), Ok(FIXED[n] | CACHED | SHARED | PAGES), "table {n}");
        for (written, kept) in ATTRIBUTES {
            assert_eq!(keeps(VALID | written), VALID | FIXED[n] | PAGES | kept, "table {n}: {written:#x}");
        }
        assert_eq!(keeps(INDIRECT | READ_ONLY), levels | FIXED[n] | PAGES | CACHED, "table {n}");
        // All but outer caches.
        let rest = !READ_ONLY & !INDIRECT & !(7 << 53) & !(3 << 8);
        assert_eq!(keeps(u64::MAX), rest | levels | FIXED[n] | PAGES, "table {n}");
    }
    for n in 2..8 {
        assert_eq!(machine.its_keeps(0x100 + 8 * n, u64::MAX), 0, "table {n}");
    }
}

/// Without one of them the ITS stays as it is.
pub fn an_its_needs_its_queue_and_its_tables(host: &dyn Host) {
    let all = [CBASER, BASER[0], BASER[1]];
    for missing in all {
        let machine = Machine::with_its(host);
        for register in all {
            machine.set_its(register, if register == missing { 0 } else { VALID }).unwrap();
        }
        machine.set_its(CTLR, 1).unwrap();
        assert!(!enabled(&machine), "{missing:#x}");
        machine.set_its(missing, VALID).unwrap();
        assert!(!enabled(&machine), "{missing:#x}");
        machine.set_its(CTLR, 1).unwrap();
        assert!(enabled(&machine), "{missing:#x}");
    }
}

/// While it is enabled they cannot be changed: most writes are ignored, that to CREADR is refused.
pub fn an_enabled_its_keeps_its_queue_and_its_tables(host: &dyn Host) {
    let machine = Machine::with_its(host);
    let registers = [CBASER, BASER[0], BASER[1]];
    for register in registers {
        machine.set_its(register, VALID | 0x4000_0000).unwrap();
    }
    let before = registers.map(|register| machine.get_its(register));
    machine.set_its(CTLR, 1).unwrap();
    for register in registers {
        assert_eq!(machine.set_its(register, 0), Ok(()));
    }
    assert_eq!(machine.set_its(CREADR, 0x20), Err(Errno::EBUSY));
    assert_eq!(registers.map(|register| machine.get_its(register)), before);
    machine.set_its(CTLR, 0).unwrap();
    assert!(!enabled(&machine));
    assert_eq!(machine.its_keeps(BASER[0], 0) & VALID, 0);
    assert_eq!(machine.its_keeps(CREADR, 0x20), 0x20);
}

/// At once, even if there is no memory to read commands from; a disabled one lets them wait.
pub fn an_enabled_its_works_its_queue_off(host: &dyn Host) {
    let machine = Machine::with_its(host);
    for register in [CBASER, BASER[0], BASER[1]] {
        machine.set_its(register, VALID | 0x4000_0000).unwrap();
    }
    machine.set_its(CWRITER, 0x60).unwrap();
    assert_eq!(machine.get_its(CREADR), Ok(0));
    machine.set_its(CTLR, 1).unwrap();
    assert_eq!(machine.get_its(CREADR), Ok(0x60));
    assert!(quiescent(&machine));
    // To the end, and on from the beginning.
    for writer in [0xfe0, 0x20] {
        machine.set_its(CWRITER, writer).unwrap();
        assert_eq!(machine.get_its(CREADR), Ok(writer));
    }
}

/// Queue, tables and mappings; the tables' registers are only marked as not valid.
pub fn resetting_an_its_forgets_everything(host: &dyn Host) {
    let machine = Machine::with_its(host);
    machine.map(5, 0, LPI);
    assert_eq!(machine.send(0, Some(5)), Ok(MsiDelivery::Delivered));
    let tables = BASER.map(|register| machine.get_its(register).unwrap());
    assert!(tables.iter().all(|table| table & VALID != 0));
    assert_eq!(refusal(machine.its().set_attr(arm::CTRL_ITS_RESET, AttrValue::None)), Ok(()));
    assert!(!enabled(&machine));
    assert_eq!([CBASER, CWRITER, CREADR].map(|offset| machine.get_its(offset)), [Ok(0); 3]);
    assert_eq!(BASER.map(|register| machine.get_its(register).unwrap() | VALID), tables);
    assert!(BASER.iter().all(|register| machine.get_its(*register).unwrap() & VALID == 0));
    assert_eq!(machine.send(0, Some(5)), Err(Errno::EBUSY));
    for (register, value) in [(CBASER, VALID), (BASER[0], tables[0]), (BASER[1], tables[1]), (CTLR, 1)] {
        machine.set_its(register, value).unwrap();
    }
    assert_eq!(machine.send(0, Some(5)), Ok(MsiDelivery::Blocked));
}

/// A table that is written again as it was is the same one: a guest's driver does that when it resumes.
pub fn what_is_mapped_goes_with_its_table(host: &dyn Host) {
    for table in BASER {
        let machine = Machine::with_its(host);
        machine.map(5, 0, LPI);
        let value = machine.get_its(table).unwrap();
        for (between, answer) in [(value, MsiDelivery::Delivered), (0, MsiDelivery::Blocked)] {
            machine.set_its(CTLR, 0).unwrap();
            machine.set_its(table, between).unwrap();
            machine.set_its(table, value).unwrap();
            assert_eq!(machine.send(0, Some(5)), Err(Errno::EBUSY), "{table:#x}");
            machine.set_its(CTLR, 1).unwrap();
            assert_eq!(machine.send(0, Some(5)), Ok(answer), "{table:#x}");
        }
    }
}

/// Also if that is valid: what was mapped lies in the table that was. Earlier kernels took it for another place to save to.
pub fn what_is_mapped_goes_with_another_table(host: &dyn Host) {
    for table in BASER {
        let machine = Machine::with_its(host);
        machine.map(5, 0, LPI);
        machine.set_its(CTLR, 0).unwrap();
        let value = machine.get_its(table).unwrap();
        // A page more, as long as no command needs it.
        machine.set_its(table, value + 1).unwrap();
        machine.set_its(CTLR, 1).unwrap();
        assert_eq!(machine.send(0, Some(5)), Ok(MsiDelivery::Blocked), "{table:#x}");
    }
}
