// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device of the host's writes to and reads from another one's BAR, at the address that the guest has given it there, through the IOMMU.
//!
//! The first is QEMU's teaching device edu, which copies between its own buffer and wherever it is told to; the BAR is memory, that of an ivshmem device.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::sync::{Arc, Mutex};

use doorbell_tests::guest::Guest;
use doorbell_tests::histogram::Histogram;
use doorbell_tests::metal::{Command, Machine};
use doorbell_tests::{bind_or_skip, host_or_skip, test_name};
use pci::PciFunction;
use vfio_passthrough::host::Sysfs;
use vfio_passthrough::iommu::{HostFiles, IommuChoice, IommuKind};
use vfio_passthrough::pci::{PciEvent, PciOptions, VfioPciFunction};
use vfio_passthrough::{DmaSpaces, ResamplePath};
use vgic::GicRequest;
use vm_memory::{Bytes, GuestAddress};

const EDU: &str = "0000:00:09.0";
const MEMORY: &str = "0000:00:11.0";

/// Where the guest has edu's registers, and the other's memory (BAR 2, 64 bits) and registers (BAR 0).
const REGISTERS: u32 = 0x1000_0000;
const SHARED: u32 = 0x2000_0000;
const SHARED_REGISTERS: u32 = 0x2800_0000;

/// Registers (QEMU, `docs/specs/edu.rst`), and where its own buffer is for its DMA.
const DMA: u64 = 0x80;
const DMA_COMMAND: u64 = 0x98;
const BUFFER: u64 = 0x4_0000;
const RUN: u64 = 1;
const FROM_BUFFER: u64 = 2;

/// A page for each transfer.
const PAGE: usize = 4096;

type Events = Arc<Mutex<Vec<(&'static str, PciEvent)>>>;

/// A guest with both. They go first.
struct Rig {
    functions: [Arc<VfioPciFunction>; 2],
    events: Events,
    machine: Machine,
}

impl Rig {
    fn new(machine: Machine, kind: IommuKind) -> Self {
        let spaces = DmaSpaces::new(Arc::new(HostFiles::default()), machine.memory().clone());
        let events = Events::default();
        // Of the VM's, each has a number of its own.
        let slots = Arc::new(machine.slots());
        let functions = [EDU, MEMORY].map(|name| {
            let found = Sysfs::new().pci_device(name).unwrap();
            let device = spaces.open(&found, IommuChoice::Only(kind)).unwrap();
            let events = Arc::clone(&events);
            let options = PciOptions {
                wiring: machine.wiring().clone(),
                line: None,
                resample: ResamplePath::Kernel,
                slots: Arc::clone(&slots) as _,
                on_root_bus: true,
                dma: true,
                device_id_base: 0,
                events: Arc::new(move |event| events.lock().unwrap().push((name, event))),
            };
            VfioPciFunction::new(device, options).unwrap()
        });
        let this = Self { functions, events, machine };
        let [edu, memory] = &this.functions;
        for (function, at, address) in [
            (edu, 0x10, REGISTERS),
            (memory, 0x10, SHARED_REGISTERS),
            (memory, 0x18, SHARED),
            (memory, 0x1c, 0),
        ] {
            function.write_config(at, &address.to_le_bytes());
        }
        for function in &this.functions {
            // Memory, bus master.
            function.write_config(4, &[6, 0]);
            function.placed(&function.decoded());
        }
        this
    }

    fn read(&self, address: u64) -> u32 {
        u32::try_from(self.machine.call(0, Command::Read(address))).unwrap()
    }

    /// The guest has edu copy a page.
    fn copy(&self, source: u64, destination: u64, direction: u64) {
        let registers = u64::from(REGISTERS);
        let set = |register, value| self.machine.call(0, Command::Write(registers + register, value));
        for (register, value) in (0..).zip([source, destination, PAGE as u64]) {
            set(DMA + 8 * register, value);
        }
        set(DMA_COMMAND, RUN | direction);
        self.machine
            .until("the transfer to end", || u64::from(self.read(registers + DMA_COMMAND)) & RUN == 0);
    }

    /// What is hidden from the other device, as it was said.
    fn hidden(&self) -> Vec<(&'static str, u8)> {
        let events = self.events.lock().unwrap();
        let hidden = events.iter().map(|(name, event)| match event {
            PciEvent::HiddenFromPeers { bar, source } => {
                println!("{name}: BAR {} is hidden: {source}", bar.get());
                (*name, bar.get())
            }
            other => panic!("{name}: {other:?}"),
        });
        hidden.collect()
    }
}

fn noise(seed: u32) -> Vec<u8> {
    (0..4096_u32).map(|n| (n.wrapping_mul(167) ^ n >> 7).wrapping_add(seed).to_le_bytes()[0]).collect()
}

#[test]
fn a_device_reaches_another_ones_memory_by_its_guest_physical_address_or_it_is_said_that_it_does_not() {
    let test = test_name!();
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let _memory = bind_or_skip!(&host, MEMORY);
    let needed = |host: vgic::HostGic| host.v2 || host.v3;
    for kind in [IommuKind::Legacy, IommuKind::Iommufd] {
        let Some(machine) = Machine::start(test, GicRequest::default(), needed, "a GIC") else { return };
        let rig = Rig::new(machine, kind);
        let memory = rig.machine.memory().clone();
        let (from, back) = (rig.machine.unused(), rig.machine.unused() + 0x10_0000);
        let hidden = rig.hidden();
        let reached = match kind {
            IommuKind::Legacy => {
                assert_eq!(hidden, []);
                true
            }
            // Linux 6.12 pins memory for it, which registers are not (`drivers/iommu/iommufd/pages.c`, `pfn_reader_user_pin`).
            _ => {
                assert!(hidden.contains(&(MEMORY, 2)) && hidden.contains(&(EDU, 0)), "{hidden:?}");
                assert!(rig.functions[1].hidden_from_peers().iter().any(|bar| bar.get() == 2));
                false
            }
        };
        for round in 0..4_u32 {
            let at = u64::from(SHARED) + 0x1_3000 * u64::from(round);
            // What only the guest's CPU writes is there before, and in other places afterwards.
            for word in [0, PAGE as u64 - 8, PAGE as u64] {
                rig.machine.call(0, Command::Write(at + word, 0x5a5a_5a5a));
            }
            let there = noise(round);
            memory.write_slice(&there, GuestAddress(from)).unwrap();
            rig.copy(from, BUFFER, 0);
            rig.copy(BUFFER, at, FROM_BUFFER);
            // The guest reads it through the other device's BAR.
            let words = there.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
            let arrived = (0..).zip(words).step_by(31).all(|(n, word)| rig.read(at + 4 * n) == word);
            assert_eq!(arrived, reached, "{kind}, round {round}");
            assert_eq!(rig.read(at + PAGE as u64), 0x5a5a_5a5a, "{kind}: no more than that");
            if !reached {
                assert_eq!(rig.read(at), 0x5a5a_5a5a, "{kind}: what was there before");
                continue;
            }
            // And edu reads it back from there.
            memory.write_slice(&[0; PAGE], GuestAddress(from)).unwrap();
            rig.copy(from, BUFFER, 0);
            rig.copy(at, BUFFER, 0);
            rig.copy(BUFFER, back, FROM_BUFFER);
            let mut came = vec![0; PAGE];
            memory.read_slice(&mut came, GuestAddress(back)).unwrap();
            assert!(came == there, "{kind}, round {round}");
        }
        println!(
            "{test}: by {kind}, edu {} the memory of {MEMORY}",
            if reached { "reaches" } else { "does not reach" }
        );
    }
}

/// The kernel can have a block of memory in the guest's page tables where the BAR lies in the VMM as it lies in the device. The host's kernel here would choose such an address
/// for blocks of this size by itself; that the VMM does is for the unit tests of `Mapping` to show.
#[test]
fn a_large_bar_costs_a_fault_for_each_block_and_not_for_each_page() {
    const SIZE: u64 = 8 << 20;
    const STEP: u64 = 64 << 10;
    let test = test_name!();
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let _memory = bind_or_skip!(&host, MEMORY);
    let needed = |host: vgic::HostGic| host.v2 || host.v3;
    let Some(machine) = Machine::start(test, GicRequest::default(), needed, "a GIC") else { return };
    let rig = Rig::new(machine, IommuKind::Legacy);
    let Some(faults) = Histogram::start("kvm/kvm_guest_fault", "ipa") else {
        println!("SKIP {test}: no kvm_guest_fault with histograms here");
        return;
    };
    let shared = u64::from(SHARED)..u64::from(SHARED) + SIZE;
    for at in shared.clone().step_by(usize::try_from(STEP).unwrap()) {
        rig.read(at);
    }
    let hits: u64 = faults.counts().range(shared).map(|(_, hits)| hits).sum();
    println!("{test}: {hits} faults for {} pages of {SIZE:#x} bytes", SIZE / STEP);
    assert!((1..=SIZE >> 21).contains(&hits), "{hits} faults");
}

/// Peers in a Linux guest of the program's, whose report says what is not reached.
#[test]
fn the_report_of_a_guest_says_which_bars_its_devices_do_not_reach() {
    let host = host_or_skip!();
    let _edu = bind_or_skip!(&host, EDU);
    let _memory = bind_or_skip!(&host, MEMORY);
    // From the peer's memory into the buffer, and from there to another place in it.
    let script = "
        edu=/sys/bus/pci/devices/0000:00:01.0 peer=/sys/bus/pci/devices/0000:00:02.0
        for device in $edu $peer; do printf '\\006' | dd of=$device/config bs=1 seek=4 conv=notrunc 2>/dev/null; done
        registers=$(sed -n 1p $edu/resource | cut -d' ' -f1)
        memory=$(sed -n 3p $peer/resource | cut -d' ' -f1)
        at() { printf 0x%x $(($1 + $2)); }
        copy() {
            devmem $(at $registers 0x80) 64 $1
            devmem $(at $registers 0x88) 64 $2
            devmem $(at $registers 0x90) 64 4096
            devmem $(at $registers 0x98) 64 $3
            while [ $(($(devmem $(at $registers 0x98) 32) & 1)) = 1 ]; do usleep 10000; done
        }
        devmem $memory 32 0x600DF00D
        devmem $(at $memory 0xffc) 32 0x600DD00D
        devmem $(at $memory 0x8000) 32 0
        devmem $(at $memory 0x8ffc) 32 0
        copy $memory 0x40000 1
        copy 0x40000 $(at $memory 0x8000) 3
        echo copied=$(devmem $(at $memory 0x8000) 32),$(devmem $(at $memory 0x8ffc) 32)";
    let hidden = "other devices do not reach BAR";
    for (iommu, copied) in [("legacy", "0x600DF00D,0x600DD00D"), ("iommufd", "0x00000000,0x00000000")] {
        let mut guest = Guest::linux(&host).flag("--report").script(script);
        for device in [EDU, MEMORY] {
            guest = guest.option("--vfio", format!("{device},iommu={iommu}"));
        }
        let end = guest.run();
        end.assert_status(0);
        assert_eq!(end.value("copied"), copied, "{iommu}{end}");
        let said = end.errors();
        let lines: Vec<_> =
            [EDU, MEMORY].map(|device| said.lines().find(|line| line.contains(device))).into();
        for line in lines {
            assert_eq!(line.unwrap().contains(hidden), iommu == "iommufd", "{said}");
        }
    }
}
