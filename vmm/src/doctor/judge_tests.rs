// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hosts of many kinds, and what is said of them.

use super::*;
use crate::doctor::facts::Vfio;
use crate::doctor::print;

/// An arm64 server with everything.
fn server() -> Facts {
    Facts {
        arch: "aarch64",
        kernel: "6.12.0".to_owned(),
        page_size: 4096,
        cpus: 64,
        memory_available: Some(250 << 30),
        root: true,
        may_lock: true,
        lock_limit: Some(8 << 20),
        kvm_node: Node::Usable,
        kvm: Some(Kvm {
            api: 12,
            trouble: None,
            vcpus: 512,
            address_bits: 48,
            gic_v2: false,
            gic_v3: true,
            its: true,
            msi_device_ids: true,
            routes: 4096,
            irqfd: true,
            resample: true,
            ioeventfd: true,
            sve: true,
            pmu: true,
            pauth: true,
            nested: true,
        }),
        emulator: false,
        vfio: Vfio {
            iommus: vec!["smmu3.0x0000000009050000".to_owned()],
            groups: 12,
            container: Node::Usable,
            iommufd: Node::Usable,
            cdevs: 1,
            bound: 1,
            noiommu: Some(false),
            drivers: vec!["vfio-pci"],
            pci: (9, 1),
        },
        huge_pages: vec![(2 << 20, 512, 500), (1 << 30, 0, 0)],
        thp: Some("madvise".to_owned()),
        shmem_thp: Some("never".to_owned()),
        tun: Node::Usable,
        vhost_net: Node::Usable,
        vhost_vsock: Node::Usable,
        loadable: vec!["vfio-platform", "tun"],
        io_uring: true,
        io_uring_disabled: Some(0),
        kvm_debugfs: true,
    }
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = server();
    change(&mut facts);
    facts
}

fn with_kvm(change: impl FnOnce(&mut Kvm)) -> Facts {
    with(|facts| change(facts.kvm.as_mut().unwrap()))
}

fn row(facts: &Facts, name: &str) -> Row {
    rows(facts).into_iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no row about {name}"))
}

#[test]
fn a_host_with_everything_lacks_nothing_that_matters() {
    let rows = rows(&server());
    assert!(a_guest_can_run(&rows));
    let other: Vec<_> = rows.iter().filter(|row| row.state != State::Ok).map(|row| row.name).collect();
    assert_eq!(other, ["GICv2"], "the GIC that such a host has not is no fault");
    assert!(rows.iter().all(|row| row.advice.is_none()), "there is nothing to do");
}

#[test]
fn what_every_guest_needs_decides() {
    use State::{Missing, Note, Ok};
    let table: [(&str, Facts, &str, State, bool, &str); 31] = [
        ("x86-64", with(|f| f.arch = "x86_64"), "architecture", Missing, false, "make run"),
        (
            "no KVM",
            with(|f| (f.kvm_node, f.kvm) = (Node::Missing, None)),
            "/dev/kvm",
            Missing,
            false,
            "dmesg",
        ),
        (
            "not for us",
            with(|f| (f.kvm_node, f.kvm) = (Node::Denied, None)),
            "/dev/kvm",
            Missing,
            false,
            "usermod -aG kvm",
        ),
        (
            "broken",
            with(|f| (f.kvm_node, f.kvm) = (Node::Broken("EIO".into()), None)),
            "/dev/kvm",
            Missing,
            false,
            "dmesg",
        ),
        ("old API", with_kvm(|k| k.api = 10), "API", Missing, false, "kernel"),
        ("no VM", with_kvm(|k| k.trouble = Some("no VM can be made".into())), "VM", Missing, false, "dmesg"),
        ("no GIC", with_kvm(|k| k.gic_v3 = false), "GIC", Missing, false, "dmesg"),
        ("no routes", with_kvm(|k| k.routes = 0), "routing table", Missing, false, "4.8"),
        ("no irqfd", with_kvm(|k| k.irqfd = false), "irqfd", Missing, false, "kernel"),
        ("no resample", with_kvm(|k| k.resample = false), "resample", Missing, false, "4.8"),
        (
            "GICv2 only",
            with_kvm(|k| (k.gic_v2, k.gic_v3, k.its) = (true, false, false)),
            "MSI",
            Note,
            true,
            "",
        ),
        ("both", with_kvm(|k| k.gic_v2 = true), "GICv2", Ok, true, ""),
        ("no device IDs", with_kvm(|k| k.msi_device_ids = false), "MSI", Missing, true, "v2m"),
        ("no ioeventfd", with_kvm(|k| k.ioeventfd = false), "ioeventfd", Missing, true, "KVM_CAP_IOEVENTFD"),
        ("no PMU", with_kvm(|k| k.pmu = false), "PMU", Note, true, ""),
        ("no SVE", with_kvm(|k| k.sve = false), "SVE", Note, true, ""),
        ("no EL2", with_kvm(|k| k.nested = false), "EL2 for guests", Note, true, ""),
        ("no debugfs", with(|f| f.kvm_debugfs = false), "debugfs", Note, true, "mount -t debugfs"),
        ("no IOMMU", with(|f| (f.vfio.groups, f.vfio.iommus) = (0, vec![])), "IOMMU", Missing, true, "SMMU"),
        ("module", with(|f| f.vfio.drivers.clear()), "drivers", Missing, true, "modprobe vfio-platform"),
        (
            "no module",
            with(|f| (f.vfio.drivers, f.loadable) = (vec![], vec![])),
            "drivers",
            Missing,
            true,
            "CONFIG_VFIO_PCI",
        ),
        (
            "no iommufd",
            with(|f| f.vfio.iommufd = Node::Missing),
            "/dev/iommu",
            Missing,
            true,
            "CONFIG_IOMMUFD",
        ),
        ("no cdev", with(|f| f.vfio.cdevs = 0), "device nodes", Missing, true, "CONFIG_VFIO_DEVICE_CDEV"),
        ("unbound", with(|f| (f.vfio.cdevs, f.vfio.bound) = (0, 0)), "device nodes", Note, true, "vfio bind"),
        ("no-IOMMU", with(|f| f.vfio.noiommu = Some(true)), "no-IOMMU", Note, true, "noiommu_mode"),
        ("limit", with(|f| f.may_lock = false), "locked memory", Note, true, "LimitMEMLOCK"),
        (
            "no huge pages",
            with(|f| f.huge_pages = vec![(2 << 20, 0, 0)]),
            "huge pages",
            Note,
            true,
            "hugepages-2048kB",
        ),
        ("no THP", with(|f| f.thp = Some("never".into())), "transparent", Note, true, "madvise"),
        ("no tun", with(|f| f.tun = Node::Missing), "/dev/net/tun", Missing, true, "modprobe tun"),
        (
            "no vhost-net",
            with(|f| f.vhost_net = Node::Missing),
            "/dev/vhost-net",
            Missing,
            true,
            "CONFIG_VHOST_NET has it; vhost=off",
        ),
        (
            "no vhost-vsock",
            with(|f| f.vhost_vsock = Node::Denied),
            "/dev/vhost-vsock",
            Missing,
            true,
            "socket=PATH",
        ),
    ];
    for (what, facts, name, state, runs, advice) in table {
        let row = row(&facts, name);
        assert_eq!((row.state, a_guest_can_run(&rows(&facts))), (state, runs), "{what}");
        assert!(row.advice.clone().unwrap_or_default().contains(advice), "{what}: {row:?}");
        assert_eq!(row.required && state == State::Missing, !runs, "{what}");
        // Whatever the host is, it fits the screen.
        for line in print::text(&facts, &rows(&facts)).lines() {
            assert!(line.chars().count() <= 80, "{what}: {line}");
        }
    }
}

#[test]
fn io_uring_is_what_disks_find() {
    for (has, disabled, state) in [
        (true, Some(0), State::Ok),
        (true, None, State::Ok),
        (false, Some(2), State::Note),
        (false, None, State::Note),
    ] {
        let facts = with(|facts| (facts.io_uring, facts.io_uring_disabled) = (has, disabled));
        assert_eq!(row(&facts, "io_uring").state, state);
    }
}

#[test]
fn a_machine_that_is_no_arm64_host_says_what_it_can_do() {
    let facts = with(|facts| {
        facts.arch = "x86_64";
        facts.emulator = true;
        facts.kvm = None;
        facts.kvm_node = Node::Missing;
    });
    assert_eq!(row(&facts, "emulation").state, State::Ok);
    let text = print::text(&facts, &rows(&facts));
    assert!(text.ends_with("No guest can run here: architecture, /dev/kvm.\n"), "{text}");
    assert!(!text.contains("GICv3"), "{text}");
}

#[test]
fn sizes_are_short() {
    for (bytes, text) in [
        (100, "100 bytes"),
        (64 << 10, "64K"),
        (2 << 20, "2M"),
        (8 << 20, "8M"),
        (1 << 30, "1G"),
        ((7 << 30) + (1 << 29) + 4096, "7.5G"),
        ((3 << 20) + 4096, "3M"),
    ] {
        assert_eq!(size(bytes), text);
    }
}
