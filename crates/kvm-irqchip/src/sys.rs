// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ioctls that kvm-ioctls does not have in the form that the seam needs: with borrowed descriptors in place of its own eventfd
//! type, and without taking ownership of a descriptor that the kernel did not make.
#![allow(unsafe_code, reason = "the one module of the crate that issues ioctls")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use irqchip::{DeviceAttr, Errno};
use kvm_bindings::{
    KVM_CREATE_DEVICE_TEST, KVMIO, kvm_create_device, kvm_device_attr, kvm_ioeventfd, kvm_irqfd,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_iowr_nr!(KVM_CREATE_DEVICE, KVMIO, 0xe0, kvm_create_device);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// The error of the call before.
pub(crate) fn last_errno() -> Errno {
    errno(vmm_sys_util::errno::Error::last())
}

/// The same number in the seam's type.
pub(crate) fn errno(error: vmm_sys_util::errno::Error) -> Errno {
    Errno::new(error.errno())
}

/// What an ioctl returned, where 0 is success.
fn check(result: i32) -> Result<(), Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// A descriptor as the kernel's structures have it.
pub(crate) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn create_device_ioctl(vm: &VmFd, kind: u32, flags: u32) -> Result<i32, Errno> {
    // -1, so that a kernel which does not fill it in leaves something that is no descriptor.
    let mut request = kvm_create_device { type_: kind, fd: (-1i32).cast_unsigned(), flags };
    // SAFETY: `vm` is a KVM VM, and KVM_CREATE_DEVICE reads and writes exactly a `kvm_create_device`, which `request` is.
    check(unsafe { ioctl_with_mut_ref(vm, KVM_CREATE_DEVICE(), &mut request) })?;
    Ok(request.fd.cast_signed())
}

/// Whether the kernel knows the device, without creating one. In this mode the kernel leaves `fd` alone, so nothing is to be
/// closed.
pub(crate) fn test_device(vm: &VmFd, kind: u32) -> Result<(), Errno> {
    create_device_ioctl(vm, kind, KVM_CREATE_DEVICE_TEST).map(|_| ())
}

pub(crate) fn create_device(vm: &VmFd, kind: u32) -> Result<OwnedFd, Errno> {
    let fd = create_device_ioctl(vm, kind, 0)?;
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the kernel has just made this descriptor for us (KVM_CREATE_DEVICE succeeded without KVM_CREATE_DEVICE_TEST, and it
    // is not the -1 that we put there), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn has_attr(device: BorrowedFd<'_>, attr: DeviceAttr) -> Result<(), Errno> {
    let request = kvm_device_attr { flags: 0, group: attr.group, attr: attr.attr, addr: 0 };
    // SAFETY: KVM_HAS_DEVICE_ATTR reads exactly a `kvm_device_attr`, which `request` is, and does not follow `addr`.
    check(unsafe { ioctl_with_ref(&device, KVM_HAS_DEVICE_ATTR(), &request) })
}

/// Sets an attribute of at most eight bytes; `None` for a command, which has no value.
///
/// The vGIC's and the ITS's attributes are of four or eight bytes. The buffer is always of eight, so that an attribute which is
/// wider than the caller believes reads our padding and not our stack.
pub(crate) fn set_attr(
    device: BorrowedFd<'_>,
    attr: DeviceAttr,
    value: Option<[u8; 8]>,
) -> Result<(), Errno> {
    let buffer = value.map(u64::from_ne_bytes);
    let addr = buffer.as_ref().map_or(0, |value| std::ptr::from_ref(value).addr() as u64);
    let request = kvm_device_attr { flags: 0, group: attr.group, attr: attr.attr, addr };
    // SAFETY: KVM_SET_DEVICE_ATTR reads exactly a `kvm_device_attr`, which `request` is. The kernel follows `addr` to read the value:
    // it is 0, which the kernel answers with EFAULT, or points to `buffer`, which outlives the call, is aligned for a u64, and is
    // as wide as the widest attribute of the devices that this crate creates.
    check(unsafe { ioctl_with_ref(&device, KVM_SET_DEVICE_ATTR(), &request) })
}

/// Reads an attribute of at most eight bytes; `argument` is what the kernel finds in the buffer before it answers there.
pub(crate) fn get_attr(
    device: BorrowedFd<'_>,
    attr: DeviceAttr,
    argument: Option<[u8; 8]>,
) -> Result<[u8; 8], Errno> {
    let mut buffer = argument.map(u64::from_ne_bytes);
    let addr = buffer.as_mut().map_or(0, |value| std::ptr::from_mut(value).expose_provenance() as u64);
    let request = kvm_device_attr { flags: 0, group: attr.group, attr: attr.attr, addr };
    // SAFETY: KVM_GET_DEVICE_ATTR reads exactly a `kvm_device_attr`, which `request` is. The kernel follows `addr` to read an
    // argument and to write the answer: it is 0, which the kernel answers with EFAULT, or the exposed address of `buffer`, which
    // outlives the call, is aligned for a u64, is not borrowed meanwhile, and is as wide as the widest attribute of the devices that
    // this crate creates.
    check(unsafe { ioctl_with_ref(&device, KVM_GET_DEVICE_ATTR(), &request) })?;
    Ok(buffer.unwrap_or(0).to_ne_bytes())
}

pub(crate) fn irqfd(vm: &VmFd, request: &kvm_irqfd) -> Result<(), Errno> {
    // SAFETY: `vm` is a KVM VM, and KVM_IRQFD reads exactly a `kvm_irqfd`. The descriptors in it are numbers that the kernel looks up
    // and takes references of its own to.
    check(unsafe { ioctl_with_ref(vm, KVM_IRQFD(), request) })
}

pub(crate) fn ioeventfd(vm: &VmFd, request: &kvm_ioeventfd) -> Result<(), Errno> {
    // SAFETY: `vm` is a KVM VM, and KVM_IOEVENTFD reads exactly a `kvm_ioeventfd`, whose descriptor is a number that the kernel looks
    // up and takes a reference of its own to.
    check(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), request) })
}
