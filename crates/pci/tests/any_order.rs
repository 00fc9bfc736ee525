// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whatever a guest writes to configuration space, and in whatever order: BARs that are placed are disjoint and where functions were told; others are
//! refused with a true reason; what is constant stays.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use irq_types::Bdf;
use pci::*;
use proptest::prelude::*;

const PORT: Bdf = Bdf::from_requester_id(3 << 3);

struct Machine {
    bus: HostBridge,
    devices: Vec<Arc<Device>>,
}

impl Machine {
    /// Two functions on the root bus, and two behind a port.
    fn new() -> Self {
        let bars = [
            (0, BarKind::Memory32 { prefetchable: false }, 0x1000),
            (1, BarKind::Io, 0x100),
            (2, BarKind::Memory64 { prefetchable: true }, 0x4000),
            (6, BarKind::Rom, 0x800),
        ];
        let devices: Vec<_> = (0..4).map(|_| Device::new(&bars)).collect();
        let bus = HostBridge::new(host_config()).unwrap();
        bus.add(bdf("0:1.0"), devices[0].clone()).unwrap();
        bus.add(bdf("0:2.0"), devices[1].clone()).unwrap();
        let config = PortConfig { slot: Some(1), io: true, ..PortConfig::default() };
        bus.add_port(PORT, Wires::port(&config).1).unwrap();
        bus.plug(PORT, vec![(0, devices[2].clone()), (1, devices[3].clone())]).unwrap();
        assert_eq!(bus.assign(), []);
        Self { bus, devices }
    }

    fn check(&self) {
        let mut reached = Vec::new();
        for (at, function) in self.bus.functions() {
            let refused: Vec<DecodedBar> = self
                .bus
                .refused()
                .iter()
                .filter(|refusal| refusal.bdf == at)
                .map(|refusal| refusal.bar)
                .collect();
            let Some(device) = self
                .devices
                .iter()
                .find(|device| Arc::as_ptr(device).cast::<()>() == Arc::as_ptr(&function).cast::<()>())
            else {
                continue;
            };
            let placed = device.placed.lock().unwrap().clone();
            for bar in device.decoded() {
                assert_eq!(bar.base % bar.size, 0);
                assert!(placed.contains(&bar) != refused.contains(&bar), "{at}: {bar:x?}");
            }
            assert_eq!(placed.len() + refused.len(), device.decoded().len());
            assert!(placed.is_sorted_by_key(|bar| bar.bar));
            reached.extend(placed);
        }
        // Functions without a place on a bus have no BAR placed, so these are all.
        let told: usize = self.devices.iter().map(|device| device.placed.lock().unwrap().len()).sum();
        assert_eq!(reached.len(), told);
        assert_eq!(self.bus.placed().into_iter().map(|(_, bar)| bar).collect::<Vec<_>>(), reached);
        reached.sort_by_key(|bar| (bar.space, bar.base));
        for pair in reached.windows(2) {
            assert!(pair[0].space != pair[1].space || pair[0].base + pair[0].size <= pair[1].base);
        }
        let window = |bar: &DecodedBar| {
            let inside =
                |range: std::ops::Range<u64>| range.start <= bar.base && bar.base + bar.size <= range.end;
            match bar.space {
                Space::Memory => inside(MEMORY_32) || inside(MEMORY_64),
                Space::Io => inside(0..IO.size),
            }
        };
        for bar in &reached {
            assert!(window(bar), "{bar:x?}");
            let base = if bar.space == Space::Io { IO.base } else { 0 } + bar.base;
            assert_eq!(self.bus.load(base + 1), bar.bar.get() << 4 | 1);
            assert_eq!(self.bus.load(base + bar.size - 1), bar.bar.get() << 4 | 0xf);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Bdf, u16, u32, u8),
    Plug,
    Remove,
    Button,
}

/// Registers that move things, and addresses that collide.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place =
        prop_oneof![Just("0:1.0"), Just("0:2.0"), Just("0:3.0"), Just("1:0.0"), Just("1:0.1"), Just("2:0.0")];
    let register = prop_oneof![
        4 => Just(4_u16),
        4 => prop_oneof![Just(0x10_u16), Just(0x14), Just(0x18), Just(0x1c), Just(0x20), Just(0x24), Just(0x28)],
        1 => prop_oneof![Just(0x2c_u16), Just(0x30), Just(0x3c)],
        1 => (0x40_u16..0xb0).prop_map(|at| at & !3),
        1 => (0..0x400_u16).prop_map(|at| at * 4),
    ];
    let value = prop_oneof![
        4 => (0_u32..8).prop_map(|n| 0x2000_0000 + n * 0x800),
        2 => prop_oneof![Just(0x80_u32), Just(0), Just(7), Just(0x2010_2000), Just(0x0001_0100), Just(0x0002_0200), Just(u32::MAX)],
        1 => any::<u32>(),
    ];
    let write =
        (place, register, value, prop_oneof![4 => Just(0xf_u8), 1 => Just(1), 1 => Just(2), 1 => Just(0xc)])
            .prop_map(|(place, register, value, bytes)| Step::Write(bdf(place), register, value, bytes));
    let step =
        prop_oneof![30 => write, 1 => Just(Step::Plug), 1 => Just(Step::Remove), 1 => Just(Step::Button)];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn any_order_of_writes_leaves_a_consistent_bus(steps in steps()) {
        let machine = Machine::new();
        let fixed = |at: Bdf, register: u16| machine.bus.dword(at, register);
        let constants = [(bdf("0:1.0"), 0), (bdf("0:1.0"), 8), (bdf("0:2.0"), 0x2c), (PORT, 0), (PORT, 8), (PORT, 0x34)];
        let before: Vec<u32> = constants.iter().map(|(at, register)| fixed(*at, *register)).collect();
        for step in steps {
            match step {
                Step::Write(at, register, value, bytes) => {
                    let value = value.to_le_bytes();
                    let first = bytes.trailing_zeros() as u16;
                    let range = usize::from(first)..usize::from(first) + bytes.count_ones() as usize;
                    machine.bus.write_config(at, register + first, &value[range]);
                }
                Step::Plug => drop(machine.bus.plug(PORT, vec![(0, machine.devices[2].clone() as _)])),
                Step::Remove => drop(machine.bus.remove(PORT)),
                Step::Button => drop(machine.bus.request_removal(PORT)),
            }
            machine.check();
        }
        let after: Vec<u32> = constants.iter().map(|(at, register)| fixed(*at, *register)).collect();
        prop_assert_eq!(before, after);
    }
}

/// vCPUs that move BARs over each other, open and close ports and load from everywhere, while the VMM plugs and unplugs.
#[test]
fn threads_that_all_change_the_bus_at_once_leave_it_consistent() {
    let machine = Machine::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..3_u32 {
            let (bus, over) = (&machine.bus, &over);
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_u32.wrapping_mul(n + 1);
                while !over.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let pick = (random >> 8) as usize;
                    let at = bdf(["0:1.0", "0:2.0", "0:3.0", "1:0.0", "1:0.1"][pick % 5]);
                    let (register, value) = match pick / 5 % 8 {
                        0..3 => (0x10, 0x2000_0000 + (random >> 16 & 3) * 0x1000),
                        3 => (4, random >> 16 & 7),
                        4 if at == PORT => (0x18, 0x0001_0100 * (random >> 16 & 1)),
                        5 if at == PORT => (0x20, 0x2000_2000),
                        _ => (0x0c, random),
                    };
                    bus.set_dword(at, register, value);
                    bus.load(0x2000_0000 + u64::from(random >> 16 & 0x3fff));
                }
            });
        }
        for _ in 0..300 {
            let _ = machine.bus.remove(PORT);
            let _ = machine.bus.plug(PORT, vec![(0, machine.devices[2].clone() as _)]);
        }
        over.store(true, Ordering::Relaxed);
    });
    machine.check();
}
