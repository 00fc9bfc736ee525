// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device handles and what their attributes lead to (Linux 6.12, `arch/arm64/kvm/vgic/vgic-kvm-device.c`).

use std::fmt;

use super::FakeVm;
use super::state::{Answer, State};
use crate::{AttrValue, DeviceAttr, DeviceControl, DeviceKind, Errno, Error, Operation, VmId, arm};

/// A device of a [`FakeVm`].
#[derive(Clone)]
pub struct FakeDevice {
    vm: FakeVm,
    kind: DeviceKind,
    /// Which of the VM's ITSes, if it is one.
    its: usize,
}

impl FakeDevice {
    pub(super) fn new(vm: FakeVm, kind: DeviceKind, its: usize) -> Self {
        Self { vm, kind, its }
    }
}

impl fmt::Debug for FakeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDevice").field("vm", &self.vm.id()).field("kind", &self.kind).finish()
    }
}

const fn bits(value: AttrValue) -> Option<u64> {
    match value {
        AttrValue::None => None,
        AttrValue::U32(n) => Some(n as u64),
        AttrValue::U64(n) => Some(n),
    }
}

impl DeviceControl for FakeDevice {
    fn vm_id(&self) -> VmId {
        self.vm.id()
    }

    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn has_attr(&self, attr: DeviceAttr) -> Result<bool, Error> {
        let kind = self.kind;
        self.vm.call(Operation::HasAttr { kind, attr }, |state| {
            let answer = match kind {
                DeviceKind::Its => State::its_has_attr(attr),
                _ => state.gic_has_attr(kind, attr),
            };
            match answer {
                Ok(()) => Ok(true),
                Err(Errno::ENXIO) => Ok(false),
                Err(errno) => Err(errno),
            }
        })
    }

    fn set_attr(&self, attr: DeviceAttr, value: AttrValue) -> Result<(), Error> {
        let kind = self.kind;
        self.vm.call(Operation::SetAttr { kind, attr, value }, |state| match kind {
            DeviceKind::Its => state.its_set_attr(self.its, attr, bits(value)),
            _ => state.gic_set_attr(kind, attr, bits(value)),
        })
    }

    fn get_attr(&self, attr: DeviceAttr, like: AttrValue) -> Result<AttrValue, Error> {
        let kind = self.kind;
        self.vm.call(Operation::GetAttr { kind, attr }, |state| {
            let answer = match kind {
                DeviceKind::Its => state.its_get_attr(self.its, attr),
                _ => state.gic_get_attr(kind, attr, bits(like)),
            }?;
            // The kernel writes to the address it was given.
            match like {
                AttrValue::None => Err(Errno::EFAULT),
                AttrValue::U32(_) => Ok(AttrValue::U32(u32::try_from(answer & 0xffff_ffff).unwrap_or(0))),
                AttrValue::U64(_) => Ok(AttrValue::U64(answer)),
            }
        })
    }
}

const fn is_register_group(kind: DeviceKind, group: u32) -> bool {
    match kind {
        DeviceKind::GicV2 => matches!(group, arm::GROUP_DIST_REGS | arm::GROUP_CPU_REGS),
        _ => matches!(
            group,
            arm::GROUP_DIST_REGS | arm::GROUP_REDIST_REGS | arm::GROUP_CPU_SYSREGS | arm::GROUP_LEVEL_INFO
        ),
    }
}

impl State {
    /// `vgic_v2_has_attr`, `vgic_v3_has_attr`.
    fn gic_has_attr(&self, kind: DeviceKind, attr: DeviceAttr) -> Answer {
        let v3 = kind == DeviceKind::GicV3;
        let known = match attr.group {
            arm::GROUP_ADDR if v3 => {
                matches!(attr, arm::ADDR_V3_DIST | arm::ADDR_V3_REDIST | arm::ADDR_V3_REDIST_REGION)
            }
            arm::GROUP_ADDR => matches!(attr, arm::ADDR_V2_DIST | arm::ADDR_V2_CPU),
            arm::GROUP_NR_IRQS => true,
            arm::GROUP_CTRL => attr == arm::CTRL_INIT || (v3 && attr == arm::CTRL_SAVE_PENDING_TABLES),
            arm::GROUP_LEVEL_INFO if v3 => (attr.attr & 0xffff_ffff) >> 10 == 0,
            group if is_register_group(kind, group) => return self.has_register(attr),
            _ => false,
        };
        if known { Ok(()) } else { Err(Errno::ENXIO) }
    }

    /// `vgic_v2_set_attr`, `vgic_v3_set_attr`, `vgic_set_common_attr`.
    fn gic_set_attr(&mut self, kind: DeviceKind, attr: DeviceAttr, value: Option<u64>) -> Answer {
        let v3 = kind == DeviceKind::GicV3;
        match attr.group {
            arm::GROUP_ADDR => {
                let base = value.ok_or(Errno::EFAULT)?;
                match attr {
                    arm::ADDR_V2_DIST if !v3 => self.set_distributor(kind, base),
                    arm::ADDR_V2_CPU if !v3 => self.set_cpu_interface(base),
                    arm::ADDR_V3_DIST if v3 => self.set_distributor(kind, base),
                    arm::ADDR_V3_REDIST if v3 => self.add_redist_region(0, base, 0),
                    arm::ADDR_V3_REDIST_REGION if v3 => {
                        // Count in bits 63–52, base 51–16, flags 15–12, index 11–0 of which the kernel keeps eight.
                        let count = u32::try_from(base >> 52).unwrap_or(0);
                        let index = u32::try_from(base & 0xff).unwrap_or(0);
                        if count == 0 || base & 0xf000 != 0 {
                            return Err(Errno::EINVAL);
                        }
                        self.add_redist_region(index, base & 0x000f_ffff_ffff_0000, count)
                    }
                    _ => Err(Errno::ENXIO),
                }
            }
            arm::GROUP_NR_IRQS => {
                let count = value.ok_or(Errno::EFAULT)?;
                self.set_nr_irqs(u32::try_from(count & 0xffff_ffff).unwrap_or(0))
            }
            arm::GROUP_CTRL => match attr {
                arm::CTRL_INIT => self.init_gic(),
                // The pending tables are guest memory.
                arm::CTRL_SAVE_PENDING_TABLES if v3 => self.lock_all_vcpus(),
                _ => Err(Errno::ENXIO),
            },
            group if is_register_group(kind, group) => self.write_register(attr, value.ok_or(Errno::EFAULT)?),
            _ => Err(Errno::ENXIO),
        }
    }

    /// `vgic_v2_get_attr`, `vgic_v3_get_attr`, `vgic_get_common_attr`. An address that was not set reads as all ones.
    fn gic_get_attr(&mut self, kind: DeviceKind, attr: DeviceAttr, argument: Option<u64>) -> Answer<u64> {
        let v3 = kind == DeviceKind::GicV3;
        if is_register_group(kind, attr.group) {
            return self.read_register(attr);
        }
        let gic = self.gic.as_ref().ok_or(Errno::ENXIO)?;
        let address = |base: Option<u64>| base.unwrap_or(u64::MAX);
        match attr {
            arm::ADDR_V2_DIST if !v3 => Ok(address(gic.distributor)),
            arm::ADDR_V2_CPU if !v3 => Ok(address(gic.cpu_interface)),
            arm::ADDR_V3_DIST if v3 => Ok(address(gic.distributor)),
            arm::ADDR_V3_REDIST if v3 => Ok(address(gic.regions.first().map(|region| region.base))),
            arm::ADDR_V3_REDIST_REGION if v3 => {
                let index = argument.ok_or(Errno::EFAULT)? & 0xff;
                self.redist_region(u32::try_from(index).unwrap_or(0))
            }
            DeviceAttr { group: arm::GROUP_NR_IRQS, .. } => Ok(u64::from(gic.spis + 32)),
            _ => Err(Errno::ENXIO),
        }
    }
}
