// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets between host and guest (VIRTIO 1.3, section 5.10).
//!
//! Either the host's kernel carries them ([`VhostVsock`]), and programs of the host use `AF_VSOCK` as those of the guest do.
//!
//! Or they are carried in userspace ([`Vsock`]), over a Unix socket, as in Firecracker: a host program connects to the socket and says `CONNECT PORT` and a newline, with the
//! port that somebody listens to in the guest; it reads `OK` and a number when that is so, and from then on talks to the guest. A connection
//! of the guest's to a port of the host (CID 2) leads to whoever listens at the socket's path with `_PORT` appended.
//!
//! Data passes straight between the sockets and the guest's memory. What a host program does not read in time is kept, as far as the guest's
//! credit goes, and the guest told to wait beyond that; other connections go on.

mod connection;
mod credit;
mod header;
mod muxer;
mod socket;
#[cfg(test)]
mod tests;
mod vhost;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::muxer::Muxer;
use self::socket::Listener;
pub use self::vhost::VhostVsock;
use self::worker::Multiplexer;
use crate::device::read_image;
use crate::vhost::open_hint;
use crate::{ActivateError, Activation, EventHandler, Events, Ring, Segment, VirtioDevice, Worker};

/// `VIRTIO_VSOCK_F_STREAM`.
const STREAM: u64 = 1 << 0;

/// The host's address, `VMADDR_CID_HOST`.
const HOST_CID: u64 = 2;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Receive, transmit, events. There is no event to report: it says that the guest's address has changed under its feet.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// A guest's address: a number from 3 to 4294967294. Those below are the hypervisor's, the local loop's and the host's, the highest is
/// anybody's (`VMADDR_CID_` in Linux's `include/uapi/linux/vm_sockets.h`).
///
/// Two guests must not have the same; in userspace only who gives them out can know, with vhost the host's kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestCid(u32);

impl GuestCid {
    /// The address `cid`.
    ///
    /// # Errors
    /// [`VsockError::Cid`].
    pub fn new(cid: u64) -> Result<Self, VsockError> {
        match u32::try_from(cid) {
            Ok(number) if number > 2 && number != u32::MAX => Ok(Self(number)),
            _ => Err(VsockError::Cid(cid)),
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VsockError {
    /// An address that no guest can have.
    #[error("{0} cannot be a guest's CID: it is a number from 3 to 4294967294")]
    Cid(u64),
    /// The host's kernel knows another guest by that address.
    #[error("another guest of this host has the CID {0}: choose another")]
    CidTaken(u32),
    /// The host's kernel cannot carry the sockets, or must not for us.
    #[error("cannot use /dev/vhost-vsock: {}", open_hint(source, "vhost_vsock"))]
    Vhost {
        /// The host's answer.
        source: io::Error,
    },
    /// The path, and a port after it, do not fit a Unix socket's address.
    #[error("the socket's path {} is too long: at most 96 bytes", .0.display())]
    PathTooLong(PathBuf),
    /// There is something else at that path.
    #[error("{} is there already, and is no socket: choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Somebody listens there already.
    #[error("the socket {} is busy: another program, such as another VM, listens there", .0.display())]
    Busy(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at the socket {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// Sockets between host and guest.
pub struct Vsock {
    cid: GuestCid,
    listener: Arc<Listener>,
    worker: Option<Worker>,
}

impl Vsock {
    /// For a guest with the address `cid`, over the Unix socket `path`, which is made now and removed when this is dropped.
    ///
    /// # Errors
    /// Whatever is in the way: see [`VsockError`].
    pub fn new(cid: GuestCid, path: impl AsRef<Path>) -> Result<Self, VsockError> {
        let listener = Arc::new(Listener::bind(path.as_ref())?);
        Ok(Self { cid, listener, worker: None })
    }
}

/// The configuration space: `guest_cid` (section 5.10.4).
fn read_config(cid: GuestCid, offset: u64, data: &mut [u8]) {
    read_image(&u64::from(cid.get()).to_le_bytes(), offset, data);
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(self.cid, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (events, multiplexer) = self.multiplexer(activation)?;
        self.worker = Some(Worker::spawn(&self.name(), events, multiplexer)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

impl Vsock {
    fn name(&self) -> String {
        format!("vsock-{}", self.cid.get())
    }

    /// What the thread is going to do.
    pub(crate) fn multiplexer(
        &self,
        activation: Activation,
    ) -> Result<(Events, impl EventHandler + use<>), ActivateError> {
        let Activation { memory, features: _, queues, transport } = activation;
        let [receive, transmit] = Ring::by_index(queues, &memory);
        let receive = receive.ok_or(ActivateError::MissingQueue(RECEIVE))?;
        let transmit = transmit.ok_or(ActivateError::MissingQueue(TRANSMIT))?;
        let muxer = Muxer::new(u64::from(self.cid.get()), Arc::clone(&self.listener));
        let multiplexer = Multiplexer::new(muxer, receive, transmit, transport);
        multiplexer
            .and_then(|multiplexer| Ok((multiplexer.events()?, multiplexer)))
            .map_err(|source| ActivateError::Worker { name: self.name(), source })
    }
}

/// The first `limit` bytes of `segments`.
fn limited(segments: impl Iterator<Item = Segment>, limit: u32) -> impl Iterator<Item = Segment> {
    let mut left = limit;
    segments.map_while(move |segment| {
        let length = segment.length.min(left);
        left -= length;
        (length > 0).then_some(Segment { length, ..segment })
    })
}
