// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every call fails at every occurrence, one run for each: nothing panics, nothing stays behind, and the next try works.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use pci::{BarIndex, PciFunction};
use vfio_passthrough::fake::{Call, FakeBus, FakeDevice};
use vfio_passthrough::iommu::IommuKind;
use vfio_passthrough::pci::VfioPciFunction;
use vfio_passthrough::platform::PlatformDevice;
use vfio_passthrough::{Error, ResamplePath};

/// What a VMM and a guest do with a PCI function, from opening it to closing it.
fn pci(rig: &Rig, device: &FakeDevice) -> Result<(), Error> {
    let function = rig.function(device, Some(rig.line(4)))?;
    let bar = BarIndex::new(0).unwrap();
    let set = |at, bytes: &[u8]| {
        function.write_config(at, bytes);
        function.placed(&function.decoded());
    };
    set(0x10, &0x2000_0000_u32.to_le_bytes());
    set(4, &[6, 0]);
    device.set_level(0, true).unwrap();
    set(MSIX + 2, &[0, 0xc0]);
    for vector in 0..4_u64 {
        function.write_bar(bar, 0x2000 + 16 * vector, &TRANSLATER.to_le_bytes());
        function.write_bar(bar, 0x2008 + 16 * vector, &u32::try_from(vector).unwrap().to_le_bytes());
    }
    set(MSIX + 2, &[0, 0x80]);
    for vector in [0_u64, 2, 6] {
        function.write_bar(bar, 0x200c + 16 * vector, &[0; 4]);
    }
    device.send(2, 0).unwrap();
    function.read_bar(bar, 0x100, &mut [0; 8]);
    set(MSIX + 2, &[0, 0]);
    set(MSI + 2, &[0x21, 0]);
    set(MSI + 2, &[0, 0]);
    set(PM + 4, &[3, 0]);
    set(PM + 4, &[0, 0]);
    set(EXPRESS + 8, &[0, 0x80]);
    function.reset();
    Ok(())
}

/// Two functions without a reset of their own, on a bus that can be reset: from opening them to closing them.
fn twins(rig: &Rig, first: &FakeDevice) -> Result<(), Error> {
    let bus = FakeBus::new(1);
    let devices =
        [first.clone(), Nvme::default().device(rig)].map(FakeDevice::without_reset).into_iter().zip(0..);
    let mut functions = Vec::new();
    for (device, devfn) in devices {
        let host = rig.sysfs.add(&format!("0000:01:00.{devfn}"), Some("vfio-pci"));
        let device = device.on_bus(&bus, devfn, 7);
        functions.push(rig.function_of(&host, &device, Some(rig.line(4 + u32::from(devfn))))?);
    }
    let all: Vec<_> = functions.iter().map(AsRef::as_ref).collect();
    VfioPciFunction::reset_with_bus(&all);
    functions.truncate(1);
    functions[0].reset();
    assert!(bus.resets() <= 2);
    Ok(())
}

/// The same for a platform device.
fn platform(rig: &Rig, device: &FakeDevice) -> Result<(), Error> {
    rig.iommu.add(PLATFORM_NAME, device.clone());
    let mut platform = PlatformDevice::open(rig.space.open(&rig.platform_name())?)?;
    platform.place(0, 0x0c00_0000, &rig.slots)?;
    platform.connect(0, &rig.wiring, &rig.line(16), ResamplePath::Kernel)?;
    device.set_level(0, true).unwrap();
    rig.take_line();
    platform.connect(0, &rig.wiring, &rig.line(17), ResamplePath::EventLoop)?;
    platform.load(0, 0, &mut [0; 4]);
    Ok(())
}

fn nothing_is_left(rig: &Rig, device: &FakeDevice, what: &str) {
    assert_eq!(rig.iommu.mapped(), [], "{what}");
    nothing_else_is_left(rig, device, what);
}

fn nothing_else_is_left(rig: &Rig, device: &FakeDevice, what: &str) {
    assert_eq!(rig.iommu.attached(), 0, "{what}");
    assert_eq!(rig.slots.list(), [], "{what}");
    assert_eq!(rig.vm.live().irqfds, 0, "{what}");
    assert!(device.is_quiet(), "{what}");
}

fn run(
    device: impl Fn(&Rig) -> FakeDevice,
    scenario: impl Fn(&Rig, &FakeDevice) -> Result<(), Error>,
) -> u64 {
    run_on(Rig::new, device, scenario)
}

fn run_on(
    rig: impl Fn() -> Rig,
    device: impl Fn(&Rig) -> FakeDevice,
    scenario: impl Fn(&Rig, &FakeDevice) -> Result<(), Error>,
) -> u64 {
    let mut struck = 0;
    for call in Call::ALL {
        for errno in [libc::EIO, libc::ENOMEM] {
            for nth in 1.. {
                let rig = rig();
                let device = device(&rig);
                rig.faults.fail(call, nth, errno);
                let result = scenario(&rig, &device);
                let what = format!("{call:?} number {nth}: {result:?}");
                if !rig.faults.clear() {
                    result.unwrap_or_else(|e| panic!("nothing failed, and yet: {e:?}"));
                    break;
                }
                struck += 1;
                if call == Call::UnmapDma {
                    // What could not be unmapped stays where it is, until the next time.
                    nothing_else_is_left(&rig, &device, &what);
                } else {
                    nothing_is_left(&rig, &device, &what);
                }
                if let Err(e) = &result {
                    // One line, which names something.
                    let line = e.to_string();
                    assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
                }
                scenario(&rig, &device).unwrap_or_else(|e| panic!("{what}; then again: {e:?}"));
                nothing_is_left(&rig, &device, &what);
            }
        }
    }
    struck
}

#[test]
fn a_pci_function_survives_every_failure() {
    for can_grow in [false, true] {
        let struck = run(|rig| Nvme { can_grow, ..Nvme::default() }.device(rig), pci);
        assert!(struck > 100, "{struck} failures are too few to mean anything");
    }
}

#[test]
fn functions_that_are_reset_with_their_bus_survive_every_failure() {
    for kind in [IommuKind::Legacy, IommuKind::Iommufd] {
        let struck = run_on(|| Rig::by(kind), |rig| Nvme::default().device(rig), twins);
        assert!(struck > 100, "{struck} failures are too few to mean anything");
    }
}

#[test]
fn a_platform_device_survives_every_failure() {
    let struck = run(pl031, platform);
    assert!(struck > 20, "{struck} failures are too few to mean anything");
}

#[test]
fn an_interrupt_that_the_host_cannot_have_for_itself_is_said_with_where_to_look() {
    for (errno, word) in [(libc::EBUSY, "shared"), (libc::EINVAL, "cannot be requested")] {
        let rig = Rig::new();
        let device = pl031(&rig);
        rig.faults.fail(Call::SetIrqs, 1, errno);
        let error = platform(&rig, &device).unwrap_err();
        let line = error.to_string();
        assert!(line.contains("interrupt 0 of 9010000.pl031") && line.contains(word), "{line}");
        assert!(error.hint().is_some(), "{line}");
        assert!(rig.faults.clear());
        nothing_is_left(&rig, &device, &line);
    }
}
