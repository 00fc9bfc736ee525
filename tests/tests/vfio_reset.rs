// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two disks of the host that have no reset of their own: they are reset with their bus, once for both, if both are the guest's.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::sync::{Arc, Mutex};

use doorbell_tests::guest::{Guest, Host};
use doorbell_tests::metal::Machine;
use doorbell_tests::{bind_or_skip, host_or_skip, test_name};
use pci::{BarIndex, PciFunction};
use vfio_passthrough::host::Sysfs;
use vfio_passthrough::iommu::{HostFiles, IommuChoice, IommuKind};
use vfio_passthrough::pci::{PciEvent, PciOptions, VfioPciFunction};
use vfio_passthrough::{DmaSpaces, Error, ResamplePath};
use vgic::GicRequest;

const TWINS: [&str; 2] = ["0000:01:00.0", "0000:01:00.1"];
const KINDS: [IommuKind; 2] = [IommuKind::Legacy, IommuKind::Iommufd];

/// The status that a virtio driver writes, at the start of BAR 4 as QEMU lays it out (VIRTIO 1.2, section 4.1.4.3). A reset makes it 0.
const STATUS: u64 = 0x14;
const ACKNOWLEDGE: u8 = 1;

/// A device as a function that nobody's bus has yet.
fn function(
    machine: &Machine,
    spaces: &DmaSpaces,
    name: &str,
    kind: IommuKind,
    events: &Arc<Mutex<Vec<PciEvent>>>,
) -> Arc<VfioPciFunction> {
    let device = spaces.open(&Sysfs::new().pci_device(name).unwrap(), IommuChoice::Only(kind)).unwrap();
    let events = Arc::clone(events);
    let options = PciOptions {
        wiring: machine.wiring().clone(),
        line: None,
        resample: ResamplePath::Kernel,
        slots: Arc::new(machine.slots()),
        on_root_bus: true,
        dma: true,
        device_id_base: 0,
        events: Arc::new(move |event| events.lock().unwrap().push(event)),
    };
    VfioPciFunction::new(device, options).unwrap()
}

fn status(function: &VfioPciFunction) -> u8 {
    let mut byte = [0xff];
    function.read_bar(BarIndex::new(4).unwrap(), STATUS, &mut byte);
    byte[0]
}

fn set_status(function: &VfioPciFunction) {
    function.write_bar(BarIndex::new(4).unwrap(), STATUS, &[ACKNOWLEDGE]);
    assert_eq!(status(function), ACKNOWLEDGE);
}

#[test]
fn the_kernel_resets_the_bus_for_whoever_has_all_of_it_and_the_devices_have_lost_their_state() {
    let test = test_name!();
    let host = host_or_skip!();
    let _twins = [bind_or_skip!(&host, TWINS[0]), bind_or_skip!(&host, TWINS[1])];
    let needed = |host: vgic::HostGic| host.v2 || host.v3;
    for kind in KINDS {
        let Some(machine) = Machine::start(test, GicRequest::default(), needed, "a GIC") else { return };
        let spaces = DmaSpaces::new(Arc::new(HostFiles::default()), machine.memory().clone());
        let events = Arc::default();
        let [first, second] = TWINS.map(|name| function(&machine, &spaces, name, kind, &events));
        assert!(!first.device().info().can_reset() && !second.device().info().can_reset());
        let info = first.device().hot_reset_info().unwrap().unwrap();
        assert_eq!(info.devices.iter().map(|device| device.name()).collect::<Vec<_>>(), TWINS);
        let iommufd = kind == IommuKind::Iommufd;
        assert_eq!((info.by_device(), info.all_owned()), (iommufd, iommufd), "{info:?}");

        [&first, &second].iter().for_each(|function| set_status(function));
        assert_eq!(VfioPciFunction::reset_with_bus(&[&first, &second]), [TWINS], "{kind}");
        assert_eq!([&first, &second].map(|function| status(function)), [0, 0], "{kind}");

        // One alone may not have the other disturbed.
        [&first, &second].iter().for_each(|function| set_status(function));
        first.reset();
        let said = std::mem::take(&mut *events.lock().unwrap());
        let [PciEvent::Trouble(error @ Error::BusInTheWay { .. })] = said.as_slice() else {
            panic!("{kind}: {said:?}")
        };
        assert!(error.to_string().contains("0000:01:00.1 is in use by this guest"), "{error}");
        assert_eq!([&first, &second].map(|function| status(function)), [ACKNOWLEDGE; 2], "{kind}");

        // Closed, it is in the same group and so in the same hands.
        drop(second);
        first.reset();
        assert_eq!(status(&first), 0, "{kind}: {:?}", events.lock().unwrap());
    }
}

/// In the guest, LEG being what only this guest writes: waits for both disks, looks whether they have what the boot before has written, writes something else, and reads it back.
const DISKS: &str = "
    for disk in vda vdb; do until head -c 512 /dev/$disk >/dev/null 2>&1; do usleep 10000; done; done
    boot=$(dd if=/dev/vda bs=512 count=1 2>/dev/null | sed -n 's/^LEG=\\([0-9]*\\).*/\\1/p')
    [ -n \"$boot\" ] || boot=0
    if [ $boot != 0 ]; then
        for disk in vda vdb; do
            dd if=/dev/$disk bs=64k skip=1 count=16 iflag=direct 2>/dev/null | md5sum >/tmp/$disk
            dd if=/dev/$disk bs=512 skip=1 count=1 iflag=direct 2>/dev/null | head -c 36 >/tmp/sum
            echo kept=$disk,$(head -c 32 /tmp/$disk | cmp -n 32 - /tmp/sum && echo yes)
        done
    fi
    boot=$((boot + 1))
    for disk in vda vdb; do
        dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null
        md5sum </tmp/noise >/tmp/sum
        dd if=/tmp/noise of=/dev/$disk bs=64k seek=1 oflag=direct 2>/dev/null
        printf 'LEG=%s\\n' $boot | dd of=/dev/$disk conv=sync bs=512 oflag=direct 2>/dev/null
        dd if=/tmp/sum of=/dev/$disk conv=sync bs=512 seek=1 oflag=direct 2>/dev/null
        dd if=/dev/$disk bs=64k skip=1 count=16 iflag=direct 2>/dev/null | cmp - /tmp/noise && echo works=$boot,$disk
    done
    awk '/virtio/ { n += $2 + $3 } END { print (n > 20) ? \"interrupts=many\" : \"interrupts=\" n }' /proc/interrupts
    if [ $boot -lt 2 ]; then reboot -f; sleep 100; fi";

/// Runs a guest with devices to its end, and returns what it said of them.
fn run(host: &Host, devices: &[String], script: &str) -> (String, doorbell_tests::guest::Finished) {
    let mut guest = Guest::linux(host).cpus(2).option("--log", "info").script(script);
    for device in devices {
        guest = guest.option("--vfio", device);
    }
    let end = guest.run();
    end.assert_status(0);
    (end.errors(), end)
}

#[test]
fn both_work_after_the_start_and_after_each_reset_of_the_guest_and_their_bus_is_reset_once_each_time() {
    let host = host_or_skip!();
    let _twins = [bind_or_skip!(&host, TWINS[0]), bind_or_skip!(&host, TWINS[1])];
    for (iommu, place) in [("legacy", ""), ("iommufd", ""), ("auto", ",slot=on")] {
        let devices = TWINS.map(|name| format!("{name},iommu={iommu}{place}"));
        let (said, end) = run(&host, &devices, &DISKS.replace("LEG", iommu));
        let works = ["1,vda", "1,vdb", "2,vda", "2,vdb"].map(|n| format!("works={n}"));
        assert_eq!(end.lines_with("works="), works, "{iommu}{place}{end}");
        let kept = ["kept=vda,yes", "kept=vdb,yes"];
        assert_eq!(end.lines_with("kept="), kept, "{iommu}{place}{end}");
        assert_eq!(end.lines_with("interrupts="), ["interrupts=many"; 2], "{iommu}{place}{end}");
        let resets = said.lines().filter(|line| line.contains("reset with their bus"));
        let resets: Vec<_> = resets.collect();
        assert_eq!(resets.len(), 2, "{iommu}{place}: {said}");
        assert!(resets.iter().all(|line| line.ends_with("0000:01:00.0, 0000:01:00.1")), "{resets:?}");
        assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    }
}

#[test]
fn one_alone_is_reset_where_nobody_has_the_other_and_what_is_in_the_way_is_said_otherwise() {
    let host = host_or_skip!();
    let _first = bind_or_skip!(&host, TWINS[0]);
    let reads = "until head -c 512 /dev/vda >/dev/null 2>&1; do usleep 10000; done
        echo read=$(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | wc -c)";
    let second = format!("/sys/bus/pci/devices/{}", TWINS[1]);
    for iommu in ["legacy", "iommufd"] {
        let device = [format!("{},iommu={iommu}", TWINS[0])];
        // With a driver of the host's, the group is not the guest's to have.
        let end = Guest::linux(&host).option("--vfio", &device[0]).run();
        end.assert_status(3);
        let line = end.error_line();
        for part in ["is not viable", "0000:01:00.1 has driver virtio-pci", "doorbell vfio bind"] {
            assert!(line.contains(part), "{iommu}: {line}");
        }
        // With none, the group is, but not the bus: the guest has the device as it was left.
        fs::write(format!("{second}/driver_override"), "none\n").unwrap();
        fs::write(format!("{second}/driver/unbind"), TWINS[1]).unwrap();
        let (said, end) = run(&host, &device, reads);
        assert_eq!(end.value("read"), "1048576");
        for part in [
            "WARN",
            "0000:01:00.0 can only be reset together with its bus",
            "0000:01:00.1 has no driver",
            "doorbell vfio bind 0000:01:00.1",
        ] {
            assert!(said.contains(part), "{iommu}: '{part}' is missing in: {said}");
        }
        assert!(!said.contains("reset with their bus"), "{iommu}: {said}");
        fs::write(format!("{second}/driver_override"), "\n").unwrap();
        fs::write("/sys/bus/pci/drivers_probe", TWINS[1]).unwrap();
        // VFIO's, and used by nobody.
        let other = bind_or_skip!(&host, TWINS[1]);
        let (said, end) = run(&host, &device, reads);
        assert_eq!(end.value("read"), "1048576");
        assert!(said.contains("reset with their bus: 0000:01:00.0, 0000:01:00.1"), "{iommu}: {said}");
        assert!(!said.contains("WARN"), "{iommu}: {said}");
        drop(other);
    }
}
