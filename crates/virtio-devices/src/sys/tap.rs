// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ioctls of `/dev/net/tun` (Linux 6.12, `include/uapi/linux/if_tun.h`) and of network interfaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_short, ifreq};

/// `TUNSETIFF`: makes the queue that `fd` is one of the interface `name`.
pub(crate) fn set_interface(fd: impl AsFd, name: &str, flags: c_short) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// `TUNGETIFF`: which interface the queue belongs to, and the flags it was made with.
pub(crate) fn interface(fd: impl AsFd) -> io::Result<(String, c_short)> {
    let mut request = request("")?;
    // SAFETY: the kernel writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF writes the flags; all bytes were initialised before.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let name =
        request.ifr_name.iter().flat_map(|&c| c.to_ne_bytes()).take_while(|&c| c != 0).collect::<Vec<u8>>();
    Ok((String::from_utf8_lossy(&name).into_owned(), flags))
}

/// Whether the queue's frames come without a `struct tun_pi` before them (`IFF_NO_PI`).
///
/// The kernel says so by the same bit as that there is no filter (`IFF_NOFILTER`, `__tun_chr_ioctl`, Linux 6.12, `drivers/net/tun.c`): so there is one while it is
/// asked, which lets everything through.
pub(crate) fn is_without_packet_info(fd: impl AsFd) -> io::Result<bool> {
    let is_set = |fd| interface(fd).map(|(_, flags)| c_int::from(flags) & libc::IFF_NO_PI != 0);
    let fd = fd.as_fd();
    if !is_set(fd)? {
        return Ok(false);
    }
    // BPF_RET | BPF_K: so many bytes of a frame pass.
    let mut all = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: u32::MAX };
    let filter = libc::sock_fprog { len: 1, filter: &raw mut all };
    // SAFETY: the kernel reads one sock_fprog and the one instruction that it points to.
    match check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNATTACHFILTER, &raw const filter) }) {
        // A macvtap has no filters, and means the one thing.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(true),
        other => other?,
    }
    let set = is_set(fd);
    // SAFETY: as above; the kernel does not even read it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNDETACHFILTER, &raw const filter) })?;
    set
}

/// `TUNSETVNETHDRSZ`: how long the `virtio_net_hdr` before each frame is.
pub(crate) fn set_header_size(fd: impl AsFd, size: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
}

/// `TUNSETVNETLE`: the header's fields are little-endian, on any host.
pub(crate) fn set_little_endian(fd: impl AsFd) -> io::Result<()> {
    let yes: c_int = 1;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETLE, &raw const yes) })
}

/// `TUNSETOFFLOAD`: what unfinished packets the reader takes, as `TUN_F_` flags.
pub(crate) fn set_offload(fd: impl AsFd, flags: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// `TUNSETQUEUE`: whether this queue of a multi-queue interface takes part.
pub(crate) fn set_queue(fd: impl AsFd, attached: bool) -> io::Result<()> {
    let mut request = request("")?;
    let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flag.try_into().map_err(io::Error::other)?;
    // SAFETY: the kernel reads one ifreq.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// `TUNSETTXFILTER`: lets through frames to `addresses` only, or all frames if there are none, and with `all_multicast` those to any group.
pub(crate) fn set_filter(fd: impl AsFd, all_multicast: bool, addresses: &[[u8; 6]]) -> io::Result<()> {
    // struct tun_filter: flags, count, addresses.
    let count = u16::try_from(addresses.len()).map_err(io::Error::other)?;
    let mut filter = u16::from(all_multicast).to_ne_bytes().to_vec();
    filter.extend(count.to_ne_bytes());
    filter.extend(addresses.iter().flatten());
    // SAFETY: the kernel reads four bytes, and six times `count` more, which is how long `filter` is.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETTXFILTER, filter.as_ptr()) })
}

/// `SIOCGIFFLAGS`: the flags of an interface. `socket` may be any socket.
pub(crate) fn interface_flags(socket: impl AsFd, name: &str) -> io::Result<c_short> {
    let mut request = request(name)?;
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &raw mut request)
    })?;
    // SAFETY: SIOCGIFFLAGS writes the flags; all bytes were initialised before.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// `ETHTOOL_GLINK`: whether an interface that is up has a carrier. A tap has one as long as somebody has it open.
pub(crate) fn interface_has_carrier(socket: impl AsFd, name: &str) -> io::Result<bool> {
    /// `struct ethtool_value` (`include/uapi/linux/ethtool.h`).
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_GLINK: u32 = 0x0a;
    let mut value = Value { command: ETHTOOL_GLINK, data: 0 };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads one ifreq, and reads and writes the value it points to, both of which live beyond the call.
    check(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request)
    })?;
    Ok(value.data != 0)
}

/// `SIOCSIFFLAGS`.
pub(crate) fn set_interface_flags(socket: impl AsFd, name: &str, flags: c_short) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the kernel reads one ifreq.
    check(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request)
    })
}

/// `SIOCGIFMTU`: the longest packet of an interface, without the Ethernet header.
pub(crate) fn interface_mtu(socket: impl AsFd, name: &str) -> io::Result<c_int> {
    let mut request = request(name)?;
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFMTU as libc::Ioctl, &raw mut request)
    })?;
    // SAFETY: SIOCGIFMTU writes the MTU; all bytes were initialised before.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// A request about `name`, which leaves room for a zero at its end.
fn request(name: &str) -> io::Result<ifreq> {
    // SAFETY: an ifreq is bytes and numbers, which may be zero.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    Ok(request)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What tests do to the host's network, without programs that not every host has.
#[cfg(test)]
pub(crate) mod host {
    use std::net::Ipv4Addr;

    use super::*;

    /// Gives the calling thread a network of its own, empty but for its loopback. It goes with the thread.
    pub(crate) fn new_network() -> io::Result<()> {
        // SAFETY: only the thread's network changes, which no memory depends on.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
    }

    /// `TUNSETPERSIST`: the interface outlives its descriptors from now on, or not.
    pub(crate) fn set_persistent(fd: impl AsFd, persistent: bool) -> io::Result<()> {
        // SAFETY: the argument is a number.
        check(unsafe {
            libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent))
        })
    }

    /// `TUNGETVNETHDRSZ`: how long the header before each frame is.
    pub(crate) fn header_size(fd: impl AsFd) -> io::Result<c_int> {
        let mut size: c_int = 0;
        // SAFETY: the kernel writes one int.
        check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut size) })?;
        Ok(size)
    }

    /// `SIOCSARP`: `address`, behind the interface `name`, has the Ethernet address `mac` for good.
    pub(crate) fn set_neighbour(
        socket: impl AsFd,
        name: &str,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> io::Result<()> {
        // SAFETY: an arpreq is bytes and numbers, which may be zero.
        let mut request: libc::arpreq = unsafe { std::mem::zeroed() };
        request.arp_pa.sa_family = libc::AF_INET.try_into().map_err(io::Error::other)?;
        // A sockaddr_in: a port, and the address.
        for (to, from) in request.arp_pa.sa_data[2..].iter_mut().zip(address.octets()) {
            *to = from.cast_signed() as libc::c_char;
        }
        request.arp_ha.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in request.arp_ha.sa_data.iter_mut().zip(mac) {
            *to = from.cast_signed() as libc::c_char;
        }
        request.arp_flags = libc::ATF_COM | libc::ATF_PERM;
        for (to, from) in request.arp_dev.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed() as libc::c_char;
        }
        // SAFETY: the kernel reads one arpreq.
        check(unsafe {
            libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSARP as libc::Ioctl, &raw const request)
        })
    }
}
