// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::iommu::IommuKind;

/// Why a device of the host cannot be, or is not any more, a device of the guest.
///
/// The message says what and which; [`hint`](Self::hint) says what to do about it; the kernel's own answer is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call to the kernel failed for a reason that no other variant explains.
    #[error("cannot {action} {object}")]
    Kernel {
        /// What was being done.
        action: &'static str,
        /// To what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A name that is not one of a device.
    #[error("'{text}' is no name of a {bus} device")]
    Malformed {
        /// What was given.
        text: String,
        /// Of which bus it should be.
        bus: &'static str,
    },
    /// The host has no such device.
    #[error("there is no {bus} device {name} on this host")]
    NotFound {
        /// Which.
        name: String,
        /// On which bus it was looked for.
        bus: &'static str,
    },
    /// The device belongs to a driver that is not VFIO's, or to none.
    #[error("{name} is bound to {}, not to a VFIO driver", Driver(driver.as_deref()))]
    NotBound {
        /// Which.
        name: String,
        /// The driver that has it.
        driver: Option<String>,
    },
    /// The device is in no IOMMU group: there is no IOMMU in front of it, or it is switched off.
    #[error("{name} is behind no IOMMU")]
    NoIommu {
        /// Which.
        name: String,
    },
    /// The device has an IOMMU, and no-IOMMU mode was asked for; or it has none and the other way round.
    #[error("{name} cannot be used with iommu={asked}: {reason}")]
    WrongIommu {
        /// Which.
        name: String,
        /// What was asked for.
        asked: IommuKind,
        /// Why not.
        reason: &'static str,
    },
    /// Another device of the group belongs to a host driver, which could be attacked by DMA.
    #[error("IOMMU group {group} of {name} is not viable: {others}")]
    GroupNotViable {
        /// Which.
        name: String,
        /// Its group's number.
        group: u32,
        /// The other devices of the group that are in the way, with their drivers.
        others: String,
    },
    /// Somebody else has it: another VMM, mostly.
    #[error("{object} is in use by another process")]
    InUse {
        /// Which file.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process may not.
    #[error("no permission to {action} {object}")]
    Permission {
        /// What was being done.
        action: &'static str,
        /// To what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The host's interrupt controller cannot keep a device from writing messages that are not its own, and the kernel was not told to
    /// put up with that: hosts with a GICv2m frame instead of an ITS.
    #[error("the host cannot isolate the interrupt messages of {name}")]
    UnsafeInterrupts {
        /// Which device.
        name: String,
        /// Whose parameter says that it may be so.
        parameter: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The device nodes of VFIO are not there.
    #[error("{} is not there", path.display())]
    NoVfio {
        /// Which.
        path: PathBuf,
        /// What would provide it.
        needs: &'static str,
    },
    /// The guest's memory cannot be pinned for DMA: the limit of locked memory is too low.
    #[error("{needed} bytes of guest memory must be locked for DMA, and the limit is {limit}")]
    MemoryLock {
        /// Bytes of guest memory.
        needed: u64,
        /// `RLIMIT_MEMLOCK`, bytes.
        limit: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The IOMMU keeps a range for itself (the window where MSIs are written to, firmware's own mappings) in which guest memory lies.
    #[error(
        "guest memory at {:#x}..{:#x} is not within what the IOMMU of {name} translates ({allowed})",
        memory.0, memory.1
    )]
    Reserved {
        /// For which device.
        name: String,
        /// The first address of the guest's memory, and the one after its last.
        memory: (u64, u64),
        /// The ranges that are translated.
        allowed: String,
    },
    /// The kernel's driver insists on resetting the device and has no code for it.
    #[error("the host has no reset for {name}")]
    NoReset {
        /// Which.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The host does not let the interrupt be requested. The driver that had the device before was an interrupt controller's, as GPIO drivers are, and
    /// has marked it so for ever (Linux 6.12, `kernel/irq/chip.c`, `__irq_do_set_handler`: `IRQ_NOREQUEST` is set with a chained handler, and stays).
    #[error("interrupt {index} of {name} cannot be requested any more on this host")]
    KeptInterrupt {
        /// Which device.
        name: String,
        /// Which of its interrupts.
        index: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The host's device tree gives the device interrupts, and VFIO has none of them.
    #[error("{name} has interrupts in the host's device tree, and VFIO offers none")]
    NoInterrupt {
        /// Which device.
        name: String,
    },
    /// A device has no reset of its own, and its bus, which could be reset, has others that are in the way.
    #[error("{name} can only be reset together with its bus, where {others}")]
    BusInTheWay {
        /// Which device.
        name: String,
        /// The devices that are in the way, each with why.
        others: String,
        /// What to do about each.
        hint: String,
    },
    /// The host's interrupt line is shared with another driver's device.
    #[error("interrupt {index} of {name} is shared with another device of the host")]
    SharedInterrupt {
        /// Which device.
        name: String,
        /// Which of its interrupts.
        index: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The host has fewer interrupt vectors left than the guest wants.
    #[error("the host has {available} interrupt vectors for {name}, and the guest uses {wanted}")]
    TooFewVectors {
        /// Which device.
        name: String,
        /// How many the guest uses.
        wanted: usize,
        /// How many there are.
        available: u32,
    },
    /// The kernel describes the device in a way that is against its own interface.
    #[error("the kernel's description of {name} makes no sense: {what}")]
    Description {
        /// Which device.
        name: String,
        /// What is odd.
        what: String,
    },
    /// The device is of a kind that cannot be passed through this way.
    #[error("{name} cannot be passed through: {reason}")]
    Unsupported {
        /// Which device.
        name: String,
        /// Why.
        reason: String,
    },
    /// The interrupt plumbing refused.
    #[error("cannot connect interrupt {index} of {name}")]
    Interrupt {
        /// Which device.
        name: String,
        /// Which of its interrupts.
        index: u32,
        /// Why.
        source: irqfd::Error,
    },
}

impl Error {
    pub(crate) fn kernel(action: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        let object = object.into();
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Self::Permission { action, object, source },
            Some(libc::EBUSY) => Self::InUse { object, source },
            _ => Self::Kernel { action, object, source },
        }
    }

    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Malformed { bus: "PCI", .. } => {
                "write domain:bus:device.function, e.g. 0000:00:08.0; `doorbell vfio list` shows them".into()
            }
            Self::Malformed { .. } => "write the name it has in sysfs, e.g. 9010000.pl031".into(),
            Self::NotFound { bus: "PCI", .. } => "`doorbell vfio list` shows this host's PCI devices".into(),
            Self::NotFound { .. } => "see /sys/bus/amba/devices and /sys/bus/platform/devices".into(),
            Self::NotBound { name, .. } => format!("bind it: doorbell vfio bind {name}"),
            Self::NoIommu { .. } => {
                "switch the IOMMU on in the firmware and on the host's kernel command line; a device without \
                one can only be had with iommu=noiommu, and then without DMA"
                    .into()
            }
            Self::WrongIommu { .. } => "leave iommu= out to let it be chosen".into(),
            Self::GroupNotViable { .. } => {
                "a group goes to a guest as a whole: give each of its devices to VFIO with `doorbell vfio bind`".into()
            }
            Self::InUse { .. } => "end the other VMM, or give this guest another device".into(),
            Self::Permission { object, .. } if object.contains("noiommu") => {
                "no-IOMMU needs CAP_SYS_RAWIO: run as root".into()
            }
            Self::Permission { object, .. } => format!("run as root, or give this user access to {object}"),
            Self::UnsafeInterrupts { parameter, .. } => {
                format!("where the guest may be trusted with that, give the host's kernel {parameter}=1")
            }
            Self::NoVfio { needs, .. } => (*needs).into(),
            Self::MemoryLock { needed, .. } => {
                format!(
                    "raise it to more than that: ulimit -l {} (KiB), or run as root",
                    needed.div_ceil(1024) + 65536
                )
            }
            Self::Reserved { .. } => {
                "use another machine layout or less memory, or leave the device out".into()
            }
            Self::NoReset { .. } => {
                "load its vfio-platform reset module, or, where the device may keep the state that its last \
                user left, give the host's kernel vfio_platform.reset_required=0"
                    .into()
            }
            Self::KeptInterrupt { .. } => "keep the host's own driver from ever taking the device: modprobe.blacklist= or, where it is built in, \
                initcall_blacklist= on the host's kernel command line"
                .into(),
            Self::NoInterrupt { .. } => "the host's kernel could not map them: see its log for the interrupt controller that they go to".into(),
            Self::BusInTheWay { hint, .. } => hint.clone(),
            Self::SharedInterrupt { .. } => "unbind the other device's driver: see /proc/interrupts".into(),
            Self::TooFewVectors { .. }
            | Self::Kernel { .. }
            | Self::Description { .. }
            | Self::Unsupported { .. }
            | Self::Interrupt { .. } => {
                return None;
            }
        })
    }
}

struct Driver<'a>(Option<&'a str>);

impl fmt::Display for Driver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "the host's driver {name}"),
            None => f.write_str("no driver"),
        }
    }
}
