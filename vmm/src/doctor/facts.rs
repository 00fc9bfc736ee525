// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is known of a host.

/// Everything that is looked at. `None` stands for what could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The processor architecture, as Rust names it.
    pub arch: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// Bytes of a page.
    pub page_size: u64,
    /// CPUs that are online.
    pub cpus: usize,
    /// Bytes of memory that new programs can have.
    pub memory_available: Option<u64>,
    /// Whether this process may do what root may with devices.
    pub root: bool,
    /// Whether locked memory is not limited for this process (`CAP_IPC_LOCK`).
    pub may_lock: bool,
    /// Bytes that may be locked; `None`: no limit.
    pub lock_limit: Option<u64>,
    /// `/dev/kvm`.
    pub kvm_node: Node,
    /// What KVM says, where it can be asked.
    pub kvm: Option<Kvm>,
    /// Whether QEMU's emulator for arm64 is there.
    pub emulator: bool,
    /// IOMMUs and devices.
    pub vfio: Vfio,
    /// Huge pages: bytes of one, how many there are, how many are free.
    pub huge_pages: Vec<(u64, u64, u64)>,
    /// When anonymous memory gets transparent huge pages: `always`, `madvise`, `never`.
    pub thp: Option<String>,
    /// When memfds get them.
    pub shmem_thp: Option<String>,
    /// `/dev/net/tun`.
    pub tun: Node,
    /// `/dev/vhost-net`.
    pub vhost_net: Node,
    /// `/dev/vhost-vsock`.
    pub vhost_vsock: Node,
    /// Modules of interest that the running kernel could load.
    pub loadable: Vec<&'static str>,
    /// `/proc/sys/kernel/io_uring_disabled`: 0 everybody may, 1 only the privileged, 2 nobody. `None`: the kernel has no such setting.
    pub io_uring_disabled: Option<u8>,
    /// Whether disks can use io_uring.
    pub io_uring: bool,
    /// Whether KVM's directory in debugfs can be read.
    pub kvm_debugfs: bool,
}

/// A device node, as far as one can know without opening it, which could load a module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Node {
    /// There is none.
    #[default]
    Missing,
    /// It is there, and not for this user.
    Denied,
    /// It can be opened for reading and writing.
    Usable,
    /// It is there and does not work.
    Broken(String),
}

/// What KVM says on a VM that was thrown away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kvm {
    /// The version of its API.
    pub api: i32,
    /// Why no VM, or no vCPU in it, could be made.
    pub trouble: Option<String>,
    /// The most vCPUs of a VM.
    pub vcpus: u32,
    /// Bits of guest-physical address; 0 where it cannot be asked.
    pub address_bits: u32,
    /// Guests may have a GICv2.
    pub gic_v2: bool,
    /// Guests may have a GICv3.
    pub gic_v3: bool,
    /// … and with it an ITS.
    pub its: bool,
    /// An ITS wants to be told the device ID of each message (asked of a VM that has one).
    pub msi_device_ids: bool,
    /// Entries of the routing table.
    pub routes: u32,
    /// Eventfds raise interrupts.
    pub irqfd: bool,
    /// … and are told of the EOI.
    pub resample: bool,
    /// Guest writes signal eventfds.
    pub ioeventfd: bool,
    /// Scalable vectors for guests.
    pub sve: bool,
    /// A performance monitor for guests.
    pub pmu: bool,
    /// Pointer authentication for guests.
    pub pauth: bool,
    /// EL2 for guests, which may then run guests of their own.
    pub nested: bool,
}

/// What there is to pass devices through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vfio {
    /// The IOMMUs, by name.
    pub iommus: Vec<String>,
    /// How many groups they make of the devices.
    pub groups: usize,
    /// `/dev/vfio/vfio`.
    pub container: Node,
    /// `/dev/iommu`.
    pub iommufd: Node,
    /// Devices' own nodes, `/dev/vfio/devices/*`.
    pub cdevs: usize,
    /// Devices that VFIO has.
    pub bound: usize,
    /// Whether VFIO takes devices without an IOMMU; `None`: it was built without that.
    pub noiommu: Option<bool>,
    /// The VFIO drivers that are registered.
    pub drivers: Vec<&'static str>,
    /// PCI devices but bridges: all, and those that can be passed through as they are.
    pub pci: (usize, usize),
}
