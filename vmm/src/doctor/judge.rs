// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From what is known of a host to what that means for a guest.

use super::facts::{Facts, Kvm, Node};
use crate::size::Size;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There.
    Ok,
    /// Not there.
    Missing,
    /// There or not, with something to know.
    Note,
}

impl State {
    /// As it is printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Note => "note",
        }
    }
}

/// One thing that a host has or lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The rows that belong together have the same.
    pub section: &'static str,
    /// What it is about.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// Without this no guest runs at all.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do or to type, if there is something.
    pub advice: Option<String>,
}

/// Whether nothing is missing that every guest needs.
#[must_use]
pub fn a_guest_can_run(rows: &[Row]) -> bool {
    !rows.iter().any(|row| row.required && row.state == State::Missing)
}

/// All rows, in the order of a screen.
#[must_use]
pub fn rows(facts: &Facts) -> Vec<Row> {
    let mut rows = Rows { section: "host", rows: Vec::new() };
    host(facts, &mut rows);
    rows.section = "KVM";
    kvm(facts, &mut rows);
    rows.section = "memory";
    memory(facts, &mut rows);
    rows.section = "devices";
    devices(facts, &mut rows);
    rows.section = "passthrough";
    passthrough(facts, &mut rows);
    rows.rows
}

struct Rows {
    section: &'static str,
    rows: Vec<Row>,
}

impl Rows {
    fn add(&mut self, state: State, name: &'static str, detail: impl Into<String>) -> &mut Row {
        let section = self.section;
        self.rows.push(Row { section, name, state, required: false, detail: detail.into(), advice: None });
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// A row that is ok if `has`, and else `otherwise`.
    fn has(&mut self, has: bool, otherwise: State, name: &'static str, yes: &str, no: &str) -> &mut Row {
        self.add(if has { State::Ok } else { otherwise }, name, if has { yes } else { no })
    }
}

impl Row {
    fn advise(&mut self, advice: impl Into<String>) -> &mut Self {
        if self.state != State::Ok {
            self.advice = Some(advice.into());
        }
        self
    }

    fn required(&mut self) -> &mut Self {
        self.required = true;
        self
    }
}

fn host(facts: &Facts, rows: &mut Rows) {
    if facts.arch == "aarch64" {
        rows.add(State::Ok, "architecture", "aarch64").required();
    } else {
        rows.add(
            State::Missing,
            "architecture",
            format!("{}: KVM runs arm64 guests on arm64 only", facts.arch),
        )
        .required()
        .advise("use an arm64 host, or the emulated one: make run");
        rows.has(
            facts.emulator,
            State::Missing,
            "emulation",
            "qemu-system-aarch64 can be an arm64 host: make run, make test",
            "no qemu-system-aarch64, which could be an arm64 host",
        )
        .advise("in the sources: make packages");
    }
    let kib = facts.page_size >> 10;
    rows.add(State::Ok, "page size", format!("{kib} KiB"));
}

fn kvm(facts: &Facts, rows: &mut Rows) {
    match &facts.kvm_node {
        Node::Usable => rows.add(State::Ok, "/dev/kvm", "opens"),
        Node::Missing => rows.add(State::Missing, "/dev/kvm", "is not there").advise(
            "the kernel has no KVM or was not started at EL2: look for 'kvm' in its log: dmesg | grep -i kvm",
        ),
        Node::Denied => rows
            .add(State::Missing, "/dev/kvm", "is not for this user")
            .advise("usermod -aG kvm USER, and log in again; or run as root"),
        Node::Broken(why) => rows
            .add(State::Missing, "/dev/kvm", why.clone())
            .advise("look for 'kvm' in the kernel's log: dmesg | grep -i kvm"),
    }
    .required();
    let Some(kvm) = &facts.kvm else { return };
    if kvm.api != 12 {
        rows.add(State::Missing, "API", format!("version {}, not 12", kvm.api))
            .required()
            .advise("use a Linux kernel's KVM");
    }
    match &kvm.trouble {
        Some(trouble) => {
            rows.add(State::Missing, "VM", trouble.clone())
                .required()
                .advise("look for 'kvm' in the kernel's log: dmesg | grep -i kvm");
        }
        None => {
            let mut limits = format!("up to {} vCPUs", kvm.vcpus);
            if kvm.address_bits != 0 {
                limits.push_str(&format!(", {} bits of guest-physical address", kvm.address_bits));
            }
            rows.add(State::Ok, "VM", limits).required();
        }
    }
    if facts.arch == "aarch64" {
        interrupt_controllers(kvm, rows);
    }
    let routes = format!("{} entries, and GSIs below that", kvm.routes);
    rows.has(kvm.routes > 0, State::Missing, "routing table", &routes, "none")
        .required()
        .advise("use a kernel of 4.8 or later");
    rows.has(kvm.irqfd, State::Missing, "irqfd", "eventfds raise interrupts", "none")
        .required()
        .advise("use a kernel with CONFIG_HAVE_KVM_IRQCHIP (any arm64 KVM since 4.8)");
    let yes = "the end of a level interrupt is reported";
    rows.has(kvm.resample, State::Missing, "resample", yes, "none: level interrupts have no way back")
        .required()
        .advise("use a kernel of 4.8 or later");
    rows.has(
        kvm.ioeventfd,
        State::Missing,
        "ioeventfd",
        "guest writes signal eventfds",
        "none: virtio devices cannot be had",
    )
    .advise("use a kernel with KVM_CAP_IOEVENTFD");
    if facts.arch == "aarch64" {
        let note = State::Note;
        rows.has(kvm.pmu, note, "PMU", "guests have one", "guests have no performance monitor");
        rows.has(kvm.sve, note, "SVE", "guests have it", "guests have no scalable vectors");
        rows.has(kvm.pauth, note, "pointer auth", "guests have it", "guests have none");
        rows.has(kvm.nested, note, "EL2 for guests", "KVM offers it", "guests cannot be hosts themselves");
    }
    rows.has(
        facts.kvm_debugfs,
        State::Note,
        "debugfs",
        "the state of a guest's GIC can be looked at",
        "the state of a guest's GIC cannot be looked at",
    )
    .advise(if facts.root {
        "mount -t debugfs none /sys/kernel/debug"
    } else {
        "it is for root: sudo doorbell ..."
    });
}

fn interrupt_controllers(kvm: &Kvm, rows: &mut Rows) {
    // Either will do; which one a machine has is not a fault.
    let other = |has: bool| if has { State::Note } else { State::Missing };
    rows.has(kvm.gic_v3, other(kvm.gic_v2), "GICv3", "guests may have one", "guests cannot have one");
    rows.has(kvm.gic_v2, other(kvm.gic_v3), "GICv2", "guests may have one", "guests cannot have one");
    if !kvm.gic_v2 && !kvm.gic_v3 {
        rows.add(State::Missing, "GIC", "guests can have no interrupt controller")
            .required()
            .advise("look for 'vgic' in the kernel's log: dmesg | grep -i gic");
        return;
    }
    match (kvm.its, kvm.msi_device_ids) {
        (true, true) => rows.add(State::Ok, "MSI", "by an ITS, which is told each message's device ID"),
        (true, false) => rows
            .add(State::Missing, "MSI", "there is an ITS, and KVM_CAP_MSI_DEVID is not set with it")
            .advise("use a kernel of 4.8 or later, or --msi v2m"),
        (false, _) => rows.add(State::Note, "MSI", "by a v2m frame, as there is no ITS; 64 vectors at most"),
    };
}

fn memory(facts: &Facts, rows: &mut Rows) {
    if let Some(bytes) = facts.memory_available {
        rows.add(State::Ok, "available", size(bytes));
    }
    let sizes: Vec<String> = facts.huge_pages.iter().map(|&(bytes, ..)| size(bytes)).collect();
    let there: Vec<String> = facts
        .huge_pages
        .iter()
        .filter(|(_, all, _)| *all > 0)
        .map(|&(bytes, all, free)| format!("{free} of {all} of {} free", size(bytes)))
        .collect();
    let (state, detail) = match (sizes.is_empty(), there.is_empty()) {
        (true, _) => (State::Note, "the kernel has none".to_owned()),
        (false, true) => (State::Note, format!("none set aside, of {}", sizes.join(", "))),
        (false, false) => (State::Ok, there.join(", ")),
    };
    let row = rows.add(state, "huge pages", detail);
    // The usual size: what a page table of pages covers.
    let usual = facts.page_size / 8 * facts.page_size;
    if let Some((bytes, ..)) =
        facts.huge_pages.iter().find(|(bytes, ..)| *bytes == usual).or(facts.huge_pages.first())
    {
        row.advise(format!(
            "for --hugepages {}: echo N > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
            size(*bytes),
            bytes >> 10
        ));
    }
    let thp = facts.thp.as_deref().unwrap_or("not in this kernel");
    let transparent = matches!(thp, "always" | "madvise");
    rows.add(
        if transparent { State::Ok } else { State::Note },
        "transparent",
        format!("anonymous memory: {thp}"),
    )
    .advise("guests are slower without: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    let shmem = facts.shmem_thp.as_deref().unwrap_or("not in this kernel");
    rows.add(State::Ok, "", format!("memfds (--backing memfd): {shmem}"));
}

fn devices(facts: &Facts, rows: &mut Rows) {
    let load = |module: &str, option: &str| match facts.loadable.contains(&module) {
        true => format!("modprobe {module}"),
        false => format!("a kernel with {option} has it"),
    };
    node(
        rows,
        &facts.tun,
        "/dev/net/tun",
        "networks (--net)",
        &load("tun", "CONFIG_TUN"),
        "usermod -aG the group that owns it, or run as root",
    );
    node(
        rows,
        &facts.vhost_net,
        "/dev/vhost-net",
        "the kernel on a network's queues",
        &format!("{}; vhost=off does without", load("vhost_net", "CONFIG_VHOST_NET")),
        "usermod -aG kvm USER; vhost=off does without",
    );
    node(
        rows,
        &facts.vhost_vsock,
        "/dev/vhost-vsock",
        "sockets through the kernel",
        &format!("{}; --vsock cid=N,socket=PATH does without", load("vhost_vsock", "CONFIG_VHOST_VSOCK")),
        "usermod -aG kvm USER; --vsock cid=N,socket=PATH does without",
    );
    let no = match facts.io_uring_disabled {
        Some(1..) => "switched off: disks work one request after the other",
        _ => "not in this kernel: disks work one request after the other",
    };
    rows.has(facts.io_uring, State::Note, "io_uring", "disks work on many requests at a time", no).advise(
        match facts.io_uring_disabled {
            Some(1..) => "sysctl kernel.io_uring_disabled=0",
            _ => "a kernel of 5.13 or later with CONFIG_IO_URING has it",
        },
    );
}

/// A row about a device node; nothing that every guest needs.
fn node(rows: &mut Rows, node: &Node, name: &'static str, what: &str, load: &str, permit: &str) {
    match node {
        Node::Usable => rows.add(State::Ok, name, what),
        Node::Missing => rows.add(State::Missing, name, format!("{what}: is not there")).advise(load),
        Node::Denied => rows.add(State::Missing, name, format!("{what}: not for this user")).advise(permit),
        Node::Broken(why) => rows.add(State::Missing, name, format!("{what}: {why}")).advise(load),
    };
}

fn passthrough(facts: &Facts, rows: &mut Rows) {
    let vfio = &facts.vfio;
    if vfio.groups == 0 && vfio.iommus.is_empty() {
        rows.add(State::Missing, "IOMMU", "none: what a device reads and writes is not kept in bounds")
            .advise(if facts.arch == "x86_64" {
                "switch it on in the firmware, and intel_iommu=on on the kernel's command line"
            } else {
                "switch the SMMU on in the firmware"
            });
    } else {
        let kinds = match vfio.iommus.as_slice() {
            [] => String::new(),
            names => format!("{}; ", names.join(" ")),
        };
        rows.add(State::Ok, "IOMMU", format!("{kinds}{} groups of devices", vfio.groups));
    }
    drivers(facts, rows);
    node(
        rows,
        &vfio.container,
        "/dev/vfio/vfio",
        "containers (iommu=legacy)",
        if facts.loadable.contains(&"vfio-pci") {
            "modprobe vfio-pci"
        } else {
            "a kernel with CONFIG_VFIO has it"
        },
        "it and /dev/vfio/N must be this user's, or run as root",
    );
    node(
        rows,
        &vfio.iommufd,
        "/dev/iommu",
        "iommufd (iommu=iommufd)",
        "a kernel with CONFIG_IOMMUFD has it; iommu=legacy does without",
        "it and /dev/vfio/devices/* must be this user's, or run as root",
    );
    if vfio.iommufd != Node::Missing {
        let (state, detail) = match (vfio.cdevs, vfio.bound) {
            (0, 0) => (State::Note, "none yet: no device is bound to VFIO".to_owned()),
            (0, _) => {
                (State::Missing, "none, though devices are bound: iommufd has no way to them".to_owned())
            }
            (count, _) => (State::Ok, format!("{count} in /dev/vfio/devices")),
        };
        rows.add(state, "device nodes", detail).advise(match vfio.bound {
            0 => "doorbell vfio bind DEVICE",
            _ => "a kernel with CONFIG_VFIO_DEVICE_CDEV has them; iommu=legacy does without",
        });
    }
    match vfio.noiommu {
        Some(true) => rows
            .add(State::Note, "no-IOMMU", "allowed: such a device can write to all of the host's memory")
            .advise("when not wanted: vfio.enable_unsafe_noiommu_mode=0 on the kernel's command line"),
        Some(false) => rows.add(State::Ok, "no-IOMMU", "not allowed, as it should be"),
        None => rows.add(State::Ok, "no-IOMMU", "not in this kernel, or VFIO is not loaded"),
    };
    let (all, ready) = vfio.pci;
    let row = rows.add(
        if all == 0 || ready > 0 { State::Ok } else { State::Note },
        "PCI devices",
        format!("{all}, of which {ready} can be passed through as they are"),
    );
    row.advise("what is in the way of each: doorbell vfio list");
    match facts.lock_limit.filter(|_| !facts.may_lock) {
        None => rows.add(State::Ok, "locked memory", "no limit for this user"),
        Some(limit) => rows
            .add(
                State::Note,
                "locked memory",
                format!("{} at most; all of the guest's has to be", size(limit)),
            )
            .advise("ulimit -l unlimited as root, or in a unit: LimitMEMLOCK=infinity"),
    };
}

fn drivers(facts: &Facts, rows: &mut Rows) {
    let vfio = &facts.vfio;
    let loadable: Vec<&str> = facts
        .loadable
        .iter()
        .copied()
        .filter(|name| name.starts_with("vfio") && !vfio.drivers.contains(name))
        .collect();
    match (vfio.drivers.is_empty(), loadable.first()) {
        (true, Some(first)) => rows
            .add(State::Missing, "drivers", "no VFIO driver is loaded")
            .advise(format!("modprobe {first}")),
        (true, None) => rows
            .add(State::Missing, "drivers", "this kernel has no VFIO driver")
            .advise("a kernel with CONFIG_VFIO_PCI has one"),
        (false, None) => rows.add(State::Ok, "drivers", vfio.drivers.join(" ")),
        (false, Some(_)) => rows.add(
            State::Ok,
            "drivers",
            format!("{}; not loaded: {}", vfio.drivers.join(" "), loadable.join(" ")),
        ),
    };
}

/// Bytes, as short as a person reads them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        _ if bytes.is_multiple_of(1 << 30) || bytes.is_multiple_of(1 << 20) && bytes < 1 << 30 => {
            Size(bytes).to_string()
        }
        _ if bytes >= 1 << 30 => format!("{}.{}G", bytes >> 30, ((bytes % (1 << 30)) * 10) >> 30),
        _ if bytes >= 1 << 20 => format!("{}M", bytes >> 20),
        _ => format!("{}K", bytes >> 10),
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
