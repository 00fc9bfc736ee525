// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looks at the host. Opens nothing but `/dev/kvm`: opening other nodes can load modules.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use irqchip::{Capabilities, Capability, CreateDevice, DeviceKind};
use kvm_bindings::{
    KVM_CAP_ARM_PMU_V3, KVM_CAP_ARM_PTRAUTH_ADDRESS, KVM_CAP_ARM_PTRAUTH_GENERIC, KVM_CAP_ARM_SVE,
    KVM_CAP_ARM_VM_IPA_SIZE, KVM_CAP_MAX_VCPUS,
};
use kvm_irqchip::{HostIrqchips, KvmVm};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use vfio_passthrough::host::{HostBus, Sysfs};

use super::facts::{Facts, Kvm, Node, Vfio};

/// `KVM_CAP_ARM_EL2`, newer than our bindings (`Documentation/virt/kvm/api.rst`, section 7.44).
const KVM_CAP_ARM_EL2: u32 = 240;

/// Capabilities of this process, by number (`include/uapi/linux/capability.h`).
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;

pub(crate) fn gather() -> Facts {
    let capabilities =
        status_field("CapEff").and_then(|text| u64::from_str_radix(&text, 16).ok()).unwrap_or(0);
    let (kvm_node, kvm) = kvm();
    Facts {
        arch: std::env::consts::ARCH,
        kernel: line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "of unknown release".to_owned()),
        page_size: rustix::param::page_size() as u64,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_available: memory_available(),
        root: capabilities >> CAP_SYS_ADMIN & 1 == 1,
        may_lock: capabilities >> CAP_IPC_LOCK & 1 == 1,
        lock_limit: lock_limit(),
        kvm_node,
        kvm,
        emulator: in_path("qemu-system-aarch64"),
        vfio: vfio(),
        huge_pages: huge_pages(),
        thp: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        shmem_thp: chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        tun: node("/dev/net/tun"),
        vhost_net: node("/dev/vhost-net"),
        vhost_vsock: node("/dev/vhost-vsock"),
        loadable: loadable(),
        io_uring: virtio_devices::host_has_io_uring(),
        io_uring_disabled: line("/proc/sys/kernel/io_uring_disabled").and_then(|text| text.parse().ok()),
        kvm_debugfs: fs::read_dir("/sys/kernel/debug/kvm").is_ok(),
    }
}

/// The first line of a file.
fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

/// Which of the words of a setting is the one in square brackets.
fn chosen(path: &str) -> Option<String> {
    bracketed(&line(path)?).map(str::to_owned)
}

fn bracketed(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

fn node(path: &str) -> Node {
    match access(path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => Node::Usable,
        Err(Errno::NOENT | Errno::NOTDIR) => Node::Missing,
        // A directory that may not be looked into hides whether there is one.
        Err(Errno::ACCESS | Errno::PERM) => Node::Denied,
        Err(e) => Node::Broken(e.to_string()),
    }
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
}

fn memory_available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let value = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn lock_limit() -> Option<u64> {
    // The soft limit; "unlimited" is no number.
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let value = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    value.split_whitespace().next()?.parse().ok()
}

fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

fn huge_pages() -> Vec<(u64, u64, u64)> {
    let mut pages: Vec<_> = names("/sys/kernel/mm/hugepages")
        .filter_map(|name| {
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = |file: &str| line(&format!("/sys/kernel/mm/hugepages/{name}/{file}"))?.parse().ok();
            Some((kib << 10, count("nr_hugepages")?, count("free_hugepages")?))
        })
        .collect();
    pages.sort_unstable();
    pages
}

/// The names in a directory; none if it cannot be read.
fn names(directory: impl AsRef<Path>) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn vfio() -> Vfio {
    let sysfs = Sysfs::new();
    let devices: Vec<_> =
        sysfs.pci_devices().into_iter().filter(|device| device.class >> 16 != 0x06).collect();
    let mut vfio = Vfio {
        iommus: names("/sys/class/iommu").collect(),
        groups: names("/sys/kernel/iommu_groups").count(),
        container: node("/dev/vfio/vfio"),
        iommufd: node("/dev/iommu"),
        cdevs: names("/dev/vfio/devices").count(),
        noiommu: line("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode").map(|text| text == "Y"),
        pci: (devices.len(), devices.iter().filter(|device| device.obstacle().is_none()).count()),
        ..Vfio::default()
    };
    vfio.iommus.sort();
    for bus in [HostBus::Pci, HostBus::Platform, HostBus::Amba] {
        let directory =
            sysfs.root().join("bus").join(bus.directory()).join("drivers").join(bus.vfio_driver());
        if directory.exists() {
            vfio.drivers.push(bus.vfio_driver());
            // Devices are links, and so is the module.
            let links = |name: &String| directory.join(name).join("vfio-dev").exists();
            vfio.bound += names(&directory).filter(links).count();
        }
    }
    vfio
}

/// Which of the modules that a guest's devices may need the running kernel could load.
fn loadable() -> Vec<&'static str> {
    let release = line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    let modules: Vec<&str> = list.lines().filter_map(module_name).collect();
    [
        HostBus::Pci.vfio_driver(),
        HostBus::Platform.vfio_driver(),
        HostBus::Amba.vfio_driver(),
        "tun",
        "vhost_net",
        "vhost_vsock",
    ]
    .into_iter()
    .filter(|name| modules.contains(name))
    .collect()
}

/// The module that a line of `modules.dep` is about: `kernel/drivers/vfio/pci/vfio-pci.ko.xz: ...`.
fn module_name(line: &str) -> Option<&str> {
    let (path, _) = line.split_once(':')?;
    path.rsplit('/').next()?.split_once(".ko").map(|(name, _)| name)
}

fn kvm() -> (Node, Option<Kvm>) {
    match node("/dev/kvm") {
        Node::Usable => {}
        other => return (other, None),
    }
    let kvm = match kvm_ioctls::Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return (Node::Broken(e.to_string()), None),
    };
    let api = kvm.get_api_version();
    if api <= 0 {
        return (Node::Broken("is something else than KVM".to_owned()), None);
    }
    let mut found = Kvm { api, ..Kvm::default() };
    if let Err(trouble) = ask(&kvm, &mut found) {
        found.trouble = Some(trouble);
    }
    (Node::Usable, Some(found))
}

/// Fills in what KVM says, on VMs that are thrown away. An error is why that ended early.
fn ask(kvm: &kvm_ioctls::Kvm, found: &mut Kvm) -> Result<(), String> {
    let number = |capability: u32| u32::try_from(kvm.check_extension_raw(capability.into())).unwrap_or(0);
    found.vcpus = number(KVM_CAP_MAX_VCPUS);
    found.address_bits = number(KVM_CAP_ARM_VM_IPA_SIZE);
    found.sve = number(KVM_CAP_ARM_SVE) != 0;
    found.pmu = number(KVM_CAP_ARM_PMU_V3) != 0;
    found.pauth = number(KVM_CAP_ARM_PTRAUTH_ADDRESS) != 0 && number(KVM_CAP_ARM_PTRAUTH_GENERIC) != 0;
    found.nested = number(KVM_CAP_ARM_EL2) != 0;
    let irqchips = HostIrqchips::probe(kvm).map_err(|e| chain(&e))?;
    found.gic_v2 = irqchips.gic_v2;
    found.gic_v3 = irqchips.gic_v3;
    found.its = irqchips.its;
    found.routes = irqchips.routes;
    found.resample = irqchips.resample;

    let vm = kvm.create_vm().map_err(|e| format!("no VM can be made: {e}"))?;
    let vm = KvmVm::new(Arc::new(vm));
    let has = |capability| vm.capability(capability).is_ok_and(|value| value != 0);
    found.irqfd = has(Capability::Irqfd);
    found.ioeventfd = has(Capability::Ioeventfd);
    vm.fd().create_vcpu(0).map_err(|e| format!("no vCPU can be made: {e}"))?;
    if irqchips.its {
        // Whether messages carry device IDs is a property of a VM, which it has once it has an ITS.
        let made =
            vm.create_device(DeviceKind::GicV3).and_then(|gic| Ok((gic, vm.create_device(DeviceKind::Its)?)));
        found.msi_device_ids = made.is_ok() && has(Capability::MsiDeviceId);
    }
    Ok(())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_can_be_looked_at() {
        let facts = gather();
        assert_eq!(facts.arch, std::env::consts::ARCH);
        assert!(facts.page_size.is_power_of_two() && facts.cpus > 0 && !facts.kernel.is_empty());
        // Only what was opened can have been asked.
        assert!(facts.kvm.is_none() || facts.kvm_node == Node::Usable);
    }

    #[test]
    fn a_setting_is_the_word_in_brackets() {
        assert_eq!(bracketed("always [madvise] never"), Some("madvise"));
        assert_eq!(bracketed("never"), None);
        assert_eq!(bracketed("[broken"), None);
    }

    #[test]
    fn what_is_not_there_is_missing() {
        assert_eq!(node("/nonexistent/node"), Node::Missing);
        assert_eq!(node("/dev/null/node"), Node::Missing);
        assert_eq!(node("/dev/null"), Node::Usable);
        assert!(!in_path("no-such-program-anywhere"));
    }

    #[test]
    fn a_module_is_known_by_its_file() {
        for line in
            ["kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz", "extra/vfio-pci.ko:"]
        {
            assert_eq!(module_name(line), Some("vfio-pci"));
        }
        assert_eq!(module_name("kernel/README:"), None);
        assert_eq!(module_name(""), None);
    }
}
