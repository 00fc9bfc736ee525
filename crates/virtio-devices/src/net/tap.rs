// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A tap: an Ethernet interface of the host whose other end is a descriptor of ours.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use libc::c_short;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::features::TapOffloads;
use super::filter::TapFilter;
use crate::sys::tap as sys;

/// Where taps come from.
const TUN: &str = "/dev/net/tun";

/// How long the header before each frame is: `struct virtio_net_hdr_v1`, which VIRTIO 1.0 and later always have (VIRTIO 1.3, section 5.1.6).
pub(crate) const HEADER_SIZE: u32 = 12;

/// How many queues an interface can have (`MAX_TAP_QUEUES`, Linux 6.12, `drivers/net/tun.c`).
pub const MAX_TAP_QUEUES: u16 = 256;

const IFF_TAP: c_short = flag(libc::IFF_TAP);
const IFF_NO_PI: c_short = flag(libc::IFF_NO_PI);
const IFF_VNET_HDR: c_short = flag(libc::IFF_VNET_HDR);
const IFF_MULTI_QUEUE: c_short = flag(libc::IFF_MULTI_QUEUE);
const IFF_TUN_EXCL: c_short = flag(libc::IFF_TUN_EXCL);
const IFF_UP: c_short = flag(libc::IFF_UP);

#[expect(
    clippy::cast_possible_truncation,
    reason = "flags of a 16-bit field, the highest of which is its sign"
)]
const fn flag(bit: libc::c_int) -> c_short {
    bit as c_short
}

/// One descriptor a queue pair of a tap, with virtio headers on its frames.
///
/// Dropping it leaves a persistent interface as it was found, and removes one that it has [created](Self::create).
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<File>,
    offloads: TapOffloads,
    mtu: Option<u16>,
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// An interface's name has 1 to 15 bytes, neither `/` nor spaces nor colons, and is not `.` or `..`.
    #[error("{0:?} cannot be the name of a network interface: 1 to 15 characters, no '/', ':' or space")]
    Name(String),
    /// A number of queue pairs that no tap has.
    #[error("{0} queue pairs: a tap has 1 to {MAX_TAP_QUEUES}")]
    Queues(usize),
    /// `/dev/net/tun` is not there, or must not be opened.
    #[error("cannot open {TUN}: {}", open_hint(source))]
    Device {
        /// The host's answer.
        source: io::Error,
    },
    /// There is no interface of that name.
    #[error(
        "there is no network interface {name}: make it with 'ip tuntap add {name} mode tap', or let it be created"
    )]
    Missing {
        /// Which.
        name: String,
    },
    /// An interface of that name is there already.
    #[error("there is a network interface {name} already: choose another name, or use it as it is")]
    Exists {
        /// Which.
        name: String,
    },
    /// Another program has the interface open.
    #[error("the tap {name} is busy: another program, such as another VM, has it open")]
    Busy {
        /// Which.
        name: String,
    },
    /// It is a network interface, but of another kind.
    #[error("the network interface {name} is no tap")]
    NotATap {
        /// Which.
        name: String,
    },
    /// The interface was made for one queue.
    #[error(
        "the tap {name} has one queue, and {queues} are wanted: make it with 'ip tuntap add {name} mode tap multi_queue'"
    )]
    SingleQueue {
        /// Which.
        name: String,
        /// How many pairs were asked for.
        queues: usize,
    },
    /// Neither owner nor administrator.
    #[error(
        "no permission for the tap {name}: it must be yours ('ip tuntap add {name} mode tap user NAME'), or you need CAP_NET_ADMIN"
    )]
    Permission {
        /// Which.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
    /// A descriptor that somebody else has opened cannot be used.
    #[error("descriptor {index} cannot be used as a tap: {problem}")]
    Descriptor {
        /// Which of those given, from 0.
        index: usize,
        /// Why.
        problem: &'static str,
    },
    /// Something else went wrong.
    #[error("cannot {action} the tap {name}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// With which interface.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there; load the module tun, or give this container the device",
        io::ErrorKind::PermissionDenied => "no permission; it is mostly open to all (mode 0666)",
        _ => "the host does not let it be opened",
    }
}

impl Tap {
    /// Opens `queues` queue pairs of an interface that exists, such as one made by `ip tuntap add NAME mode tap [multi_queue] [user USER]`.
    ///
    /// # Errors
    /// Whatever is in the way: see [`TapError`].
    pub fn open(name: &str, queues: usize) -> Result<Self, TapError> {
        check(name, queues)?;
        loop {
            let found = Found::by_name(name)?;
            if let Some(tap) = Self::open_found(name, queues, found)? {
                return Ok(tap);
            }
        }
    }

    /// Opens the interface that was found by that name. `None` if it has gone since: where there is none any more the kernel makes one, to whoever may.
    pub(super) fn open_found(name: &str, queues: usize, found: Found) -> Result<Option<Self>, TapError> {
        let first = open_tun()?;
        let opened = attach(&first, name, if queues > 1 { IFF_MULTI_QUEUE } else { 0 }).map(|()| queues > 1);
        // An interface is made either for one queue or for many, and the flag has to say which.
        let multi_queue = match opened {
            Ok(multi_queue) => multi_queue,
            Err(TapError::NotATap { .. }) if queues > 1 => {
                // If it opens without the flag, that was what was wrong.
                let single = attach(&first, name, 0);
                return Err(match single {
                    Ok(()) | Err(TapError::Busy { .. }) => {
                        TapError::SingleQueue { name: name.to_owned(), queues }
                    }
                    Err(other) => other,
                });
            }
            Err(TapError::NotATap { .. }) => attach(&first, name, IFF_MULTI_QUEUE).map(|()| true)?,
            Err(other) => return Err(other),
        };
        // It stays as it is while it is ours.
        if index(&found.socket, name)? != found.index {
            return Ok(None);
        }
        // With many queues the kernel lets anybody add another one; it has a carrier while somebody has one
        // open, unless it is down.
        if multi_queue && found.has_carrier {
            return Err(TapError::Busy { name: name.to_owned() });
        }
        let mut files = vec![first];
        for _ in 1..queues {
            let file = open_tun()?;
            attach(&file, name, IFF_MULTI_QUEUE)?;
            files.push(file);
        }
        Self::new(name.to_owned(), files).map(Some)
    }

    /// Makes an interface of that name, which lives as long as the result. It wants `CAP_NET_ADMIN`. The interface is down, and on no bridge:
    /// see [`set_up`](Self::set_up).
    ///
    /// # Errors
    /// Whatever is in the way: see [`TapError`].
    pub fn create(name: &str, queues: usize) -> Result<Self, TapError> {
        check(name, queues)?;
        let multi_queue = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let first = open_tun()?;
        attach(&first, name, multi_queue | IFF_TUN_EXCL).map_err(|error| match error {
            TapError::Busy { name } => TapError::Exists { name },
            other => other,
        })?;
        let mut files = vec![first];
        for _ in 1..queues {
            let file = open_tun()?;
            attach(&file, name, multi_queue)?;
            files.push(file);
        }
        Self::new(name.to_owned(), files)
    }

    /// Takes descriptors that somebody else has opened, one a queue pair: of a tap with `IFF_NO_PI | IFF_VNET_HDR`, or of a macvtap.
    ///
    /// # Errors
    /// [`TapError::Queues`] and [`TapError::Descriptor`].
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        if fds.is_empty() || fds.len() > usize::from(MAX_TAP_QUEUES) {
            return Err(TapError::Queues(fds.len()));
        }
        let mut name: Option<String> = None;
        for (index, fd) in fds.iter().enumerate() {
            let bad = |problem| TapError::Descriptor { index, problem };
            let (its, flags) =
                sys::interface(fd).map_err(|_| bad("it is not of an interface of /dev/net/tun"))?;
            if flags & IFF_TAP == 0 {
                return Err(bad("it carries IP packets, not Ethernet frames (IFF_TUN)"));
            }
            if flags & IFF_VNET_HDR == 0 || !sys::is_without_packet_info(fd).unwrap_or(false) {
                return Err(bad("it has to be opened with IFF_NO_PI | IFF_VNET_HDR"));
            }
            if *name.get_or_insert_with(|| its.clone()) != its {
                return Err(bad("it is of another interface than the first"));
            }
            rustix::io::ioctl_fionbio(fd, true).map_err(|_| bad("it cannot be made non-blocking"))?;
        }
        Self::new(name.unwrap_or_default(), fds.into_iter().map(File::from).collect())
    }

    /// Something that keeps frames apart as a tap does, such as a datagram socket; it can do nothing else that a tap can.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn imitated(fd: OwnedFd) -> Self {
        Self { name: String::new(), queues: vec![fd.into()], offloads: TapOffloads::NONE, mtu: None }
    }

    /// The frames' form, and what the host can do.
    pub(super) fn new(name: String, queues: Vec<File>) -> Result<Self, TapError> {
        let host = |action| {
            let name = name.clone();
            move |source| TapError::Host { action, name, source }
        };
        let first = queues.first().ok_or(TapError::Queues(0))?;
        // A tap has one header for all of its queues; with a macvtap each queue has its own (`tap_ioctl`, Linux 6.12, `drivers/net/tap.c`).
        for queue in &queues {
            let size = HEADER_SIZE.cast_signed();
            sys::set_header_size(queue, size).map_err(host("set the header size of"))?;
            sys::set_little_endian(queue).map_err(host("set the header's byte order of"))?;
        }
        // These are the interface's, whichever of its queues is asked.
        let offloads = TapOffloads::PROBES
            .into_iter()
            .find(|probe| sys::set_offload(first, probe.flags()).is_ok())
            .unwrap_or(TapOffloads::NONE);
        // Nobody listens yet; a driver that asks for nothing gets finished packets.
        sys::set_offload(first, 0).map_err(host("set the offloads of"))?;
        // Not of this host's namespace, it may be, when somebody else has opened it. Then nobody says what its MTU is.
        let mtu = any_socket().and_then(|socket| sys::interface_mtu(&socket, &name)).ok();
        let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok()).filter(|&mtu| mtu >= MIN_MTU);
        Ok(Self { name, queues, offloads, mtu })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many queue pairs are open.
    #[must_use]
    pub fn queue_pairs(&self) -> usize {
        self.queues.len()
    }

    /// The longest packet, without the Ethernet header, as it was when the tap was opened, if it can be told and virtio can express it: 68 to
    /// 65535 bytes.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// Brings the interface up: `ip link set NAME up`. It wants `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// [`TapError::Permission`]; [`TapError::Host`].
    pub fn set_up(&self) -> Result<(), TapError> {
        let result = any_socket().and_then(|socket| {
            let flags = sys::interface_flags(&socket, &self.name)?;
            sys::set_interface_flags(&socket, &self.name, flags | IFF_UP)
        });
        result.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => TapError::Permission { name: self.name.clone(), source },
            _ => TapError::Host { action: "bring up", name: self.name.clone(), source },
        })
    }

    /// What unfinished packets it can take and give.
    pub(crate) fn offloads(&self) -> TapOffloads {
        self.offloads
    }

    /// The descriptor of a queue pair.
    pub(crate) fn queue(&self, pair: usize) -> Option<&File> {
        self.queues.get(pair)
    }

    /// What unfinished packets may come out of it from now on.
    pub(crate) fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()> {
        sys::set_offload(self.first(), offloads.flags())
    }

    /// Lets the first `active` queues take part and the others rest. Frames then go to those queues only.
    pub(crate) fn set_active_queues(&self, active: usize) -> io::Result<()> {
        if self.queues.len() < 2 {
            return Ok(());
        }
        for (index, queue) in self.queues.iter().enumerate() {
            match sys::set_queue(queue, index < active) {
                // It is what it should be already.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Lets only those frames through. What cannot filter (macvtap) lets all through, which a filter may.
    pub(crate) fn set_filter(&self, filter: &TapFilter) -> io::Result<()> {
        let result = match filter {
            TapFilter::Everything => sys::set_filter(self.first(), false, &[]),
            TapFilter::Only { all_multicast, addresses } => {
                sys::set_filter(self.first(), *all_multicast, addresses)
            }
        };
        match result {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => Ok(()),
            other => other,
        }
    }

    fn first(&self) -> BorrowedFd<'_> {
        #[expect(clippy::indexing_slicing, reason = "a tap has at least one queue: `new`")]
        self.queues[0].as_fd()
    }
}

/// An interface as it is before it is opened.
#[derive(Debug)]
pub(super) struct Found {
    /// What it was asked with.
    socket: OwnedFd,
    /// Its number: one that is made anew by the same name has another.
    index: u32,
    has_carrier: bool,
}

impl Found {
    pub(super) fn by_name(name: &str) -> Result<Self, TapError> {
        let socket = any_socket().map_err(|source| asked(name, source))?;
        let index = index(&socket, name)?;
        let has_carrier = match sys::interface_has_carrier(&socket, name) {
            // An interface that cannot tell is no tap, which is found out in a moment.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => false,
            other => other.map_err(|source| asked(name, source))?,
        };
        Ok(Self { socket, index, has_carrier })
    }
}

/// The number of the interface `name`.
fn index(socket: &OwnedFd, name: &str) -> Result<u32, TapError> {
    name_to_index(socket, name).map_err(|errno| asked(name, errno.into()))
}

/// Why the kernel has not said something of the interface `name`.
fn asked(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::ENODEV) => TapError::Missing { name },
        _ => TapError::Host { action: "ask the kernel about", name, source },
    }
}

/// The shortest MTU that virtio knows (VIRTIO 1.3, section 5.1.4.1).
const MIN_MTU: u16 = 68;

fn check(name: &str, queues: usize) -> Result<(), TapError> {
    // dev_valid_name, Linux 6.12, net/core/dev.c. A '%' would be a pattern, and make an interface of another name.
    let bad = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | b'\0' | b'%');
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || matches!(name, "." | "..") || name.bytes().any(bad)
    {
        return Err(TapError::Name(name.to_owned()));
    }
    if queues == 0 || queues > usize::from(MAX_TAP_QUEUES) {
        return Err(TapError::Queues(queues));
    }
    Ok(())
}

fn open_tun() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(Path::new(TUN))
        .map_err(|source| TapError::Device { source })
}

/// Makes `file` a queue of the interface `name`.
fn attach(file: &File, name: &str, flags: c_short) -> Result<(), TapError> {
    sys::set_interface(file, name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags).map_err(|source| {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy { name },
            // Also what the kernel says when the multi-queue flag is not the interface's.
            Some(libc::EINVAL) => TapError::NotATap { name },
            Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, source },
            _ => TapError::Host { action: "open", name, source },
        }
    })
}

/// The kernel wants a socket, any socket, to be asked about interfaces of the process's network namespace.
fn any_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_not_take_or_would_change_are_refused() {
        for name in ["", "a/b", "a b", "a:b", "tap%d", ".", "..", "sixteen-letters!"] {
            assert!(matches!(Tap::open(name, 1), Err(TapError::Name(bad)) if bad == name), "{name:?}");
            assert!(matches!(Tap::create(name, 1), Err(TapError::Name(_))));
        }
        assert!(check("fifteen-letters", 1).is_ok());
    }

    #[test]
    fn queue_counts_have_limits() {
        for queues in [0, usize::from(MAX_TAP_QUEUES) + 1, usize::MAX] {
            assert!(matches!(Tap::open("tap0", queues), Err(TapError::Queues(n)) if n == queues));
        }
        assert!(check("tap0", usize::from(MAX_TAP_QUEUES)).is_ok());
        assert!(matches!(Tap::from_fds(Vec::new()), Err(TapError::Queues(0))));
        let null = File::open("/dev/null").unwrap();
        let many = |count| (0..count).map(|_| null.try_clone().unwrap().into()).collect();
        assert!(matches!(Tap::from_fds(many(257)), Err(TapError::Queues(257))));
        assert!(matches!(Tap::from_fds(many(256)), Err(TapError::Descriptor { index: 0, .. })));
    }

    #[test]
    fn what_is_no_tap_is_said_to_be_none() {
        let null = File::open("/dev/null").unwrap();
        let error = Tap::from_fds(vec![null.into()]).unwrap_err();
        assert!(matches!(error, TapError::Descriptor { index: 0, .. }), "{error}");
    }
}
