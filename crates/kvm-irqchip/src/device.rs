// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use irqchip::{AttrValue, DeviceAttr, DeviceControl, DeviceKind, Errno, Error, Operation, VmId};

use crate::sys;

/// A device of KVM: the descriptor that `KVM_CREATE_DEVICE` returned.
#[derive(Debug)]
pub struct KvmDevice {
    fd: OwnedFd,
    kind: DeviceKind,
    vm: VmId,
}

impl KvmDevice {
    pub(crate) fn new(fd: OwnedFd, kind: DeviceKind, vm: VmId) -> Self {
        Self { fd, kind, vm }
    }
}

impl AsFd for KvmDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The value's bytes, at the start of a buffer of eight: a 32-bit attribute is read from there whatever the byte order.
fn bytes(value: AttrValue) -> Option<[u8; 8]> {
    match value {
        AttrValue::None => None,
        AttrValue::U32(n) => {
            let mut buffer = [0; 8];
            buffer[..4].copy_from_slice(&n.to_ne_bytes());
            Some(buffer)
        }
        AttrValue::U64(n) => Some(n.to_ne_bytes()),
    }
}

impl DeviceControl for KvmDevice {
    fn vm_id(&self) -> VmId {
        self.vm
    }

    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn has_attr(&self, attr: DeviceAttr) -> Result<bool, Error> {
        match sys::has_attr(self.as_fd(), attr) {
            Ok(()) => Ok(true),
            Err(Errno::ENXIO) => Ok(false),
            Err(errno) => Err(Error::new(Operation::HasAttr { kind: self.kind, attr }, errno)),
        }
    }

    fn set_attr(&self, attr: DeviceAttr, value: AttrValue) -> Result<(), Error> {
        sys::set_attr(self.as_fd(), attr, bytes(value))
            .map_err(|errno| Error::new(Operation::SetAttr { kind: self.kind, attr, value }, errno))
    }

    fn get_attr(&self, attr: DeviceAttr, like: AttrValue) -> Result<AttrValue, Error> {
        let answer = sys::get_attr(self.as_fd(), attr, bytes(like))
            .map_err(|errno| Error::new(Operation::GetAttr { kind: self.kind, attr }, errno))?;
        let [a, b, c, d, ..] = answer;
        Ok(match like {
            AttrValue::None => AttrValue::None,
            AttrValue::U32(_) => AttrValue::U32(u32::from_ne_bytes([a, b, c, d])),
            AttrValue::U64(_) => AttrValue::U64(u64::from_ne_bytes(answer)),
        })
    }
}
