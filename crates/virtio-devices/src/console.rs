// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console (VIRTIO 1.3, section 5.3): one port, between the guest and two descriptors of the host.

mod port;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use self::port::Port;
use crate::device::read_image;
use crate::lock::lock;
use crate::{ActivateError, Activation, EventHandler, Events, Ring, Transport, VirtioDevice, Worker};

/// `VIRTIO_CONSOLE_F_SIZE`: `cols` and `rows` are there.
const SIZE: u64 = 1 << 0;
/// `VIRTIO_CONSOLE_F_EMERG_WRITE`: a byte can be written without a queue.
const EMERGENCY_WRITE: u64 = 1 << 2;

/// Where `emerg_wr` is in the configuration space (section 5.3.4).
const EMERGENCY_WRITE_AT: u64 = 8;

/// The thread's name.
const NAME: &str = "console";

/// The queue that the device writes what was typed to.
const RECEIVE: u16 = 0;
/// The queue that the guest writes its output to.
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [128, 128];

/// A descriptor that does not block while this lives. The flag belongs to the open file, which others may share: it is given back.
pub(crate) struct NonBlocking {
    fd: OwnedFd,
    was: OFlags,
}

impl NonBlocking {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let was = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, was | OFlags::NONBLOCK)?;
        Ok(Self { fd, was })
    }
}

impl AsFd for NonBlocking {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        // Whoever shares it finds it as it was, unless it cannot be told.
        let _ = fcntl_setfl(&self.fd, self.was);
    }
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// A descriptor cannot be made non-blocking: mostly, it is none.
    #[error("cannot use the descriptor for the console's {direction}")]
    Descriptor {
        /// Input or output.
        direction: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// What the device and its handles share.
#[derive(Default)]
struct Shared {
    /// Columns in the upper half, rows in the lower: they change together.
    size: AtomicU32,
    transport: Mutex<Option<Arc<dyn Transport>>>,
}

/// The console.
///
/// The guest's output is taken at the pace at which the descriptor takes it, and input is read when the guest has room for it: nothing is
/// buffered in between, and nothing lost. Once a write has failed (the other end of a pipe is closed), output goes nowhere.
pub struct Console {
    // Both may be one open file, as those of a terminal are: what was made non-blocking last, and found it so, is given back first.
    output: Arc<NonBlocking>,
    input: Option<Arc<NonBlocking>>,
    has_size: bool,
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

impl Console {
    /// A console that writes to `output` and reads from `input`, if there is one. Both are made non-blocking as long as it lives.
    ///
    /// `size`, in columns and rows, is told to the guest, and makes it look for [changes](ConsoleHandle::resize).
    ///
    /// # Errors
    /// [`ConsoleError::Descriptor`].
    pub fn new(
        input: Option<OwnedFd>,
        output: OwnedFd,
        size: Option<(u16, u16)>,
    ) -> Result<Self, ConsoleError> {
        let usable = |direction, fd| {
            NonBlocking::new(fd)
                .map(Arc::new)
                .map_err(|source| ConsoleError::Descriptor { direction, source })
        };
        let input = input.map(|input| usable("input", input)).transpose()?;
        let output = usable("output", output)?;
        let shared = Arc::new(Shared::default());
        if let Some((columns, rows)) = size {
            shared.size.store(u32::from(columns) << 16 | u32::from(rows), Ordering::Relaxed);
        }
        Ok(Self { output, input, has_size: size.is_some(), shared, worker: None })
    }

    /// To tell the guest of another size, later and from elsewhere.
    #[must_use]
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(Arc::clone(&self.shared))
    }
}

/// A hand on the console's size, from any thread. Clones are of the same console.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Shared>);

impl ConsoleHandle {
    /// The terminal has another size now. A guest that was given one at the start is told.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = u32::from(columns) << 16 | u32::from(rows);
        if self.0.size.swap(size, Ordering::Relaxed) == size {
            return;
        }
        let transport = lock(&self.0.transport).clone();
        if let Some(transport) = transport {
            transport.config_changed();
        }
    }
}

impl fmt::Debug for ConsoleHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.size.load(Ordering::Relaxed);
        f.debug_struct("ConsoleHandle")
            .field("columns", &(size >> 16))
            .field("rows", &(size & 0xffff))
            .finish()
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        EMERGENCY_WRITE | if self.has_size { SIZE } else { 0 }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.shared.size.load(Ordering::Relaxed);
        let [rows_low, rows_high, columns_low, columns_high] = size.to_le_bytes();
        // cols, rows, max_nr_ports, emerg_wr.
        read_image(&[columns_low, columns_high, rows_low, rows_high, 1, 0, 0, 0, 0, 0, 0, 0], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY_WRITE_AT, [byte, ..]) = (offset, data) {
            // The last words of a guest that is lost: as good as can be.
            let _ = rustix::io::write(&*self.output, &[*byte]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let transport = Arc::clone(&activation.transport);
        let (events, port) = self.port(activation)?;
        self.worker = Some(Worker::spawn(NAME, events, port)?);
        *lock(&self.shared.transport) = Some(transport);
        Ok(())
    }

    fn reset(&mut self) {
        *lock(&self.shared.transport) = None;
        self.worker = None;
    }
}

impl Console {
    /// What the thread is going to do.
    pub(crate) fn port(
        &self,
        activation: Activation,
    ) -> Result<(Events, impl EventHandler + use<>), ActivateError> {
        let Activation { memory, features: _, queues, transport } = activation;
        let [receive, transmit] = Ring::by_index(queues, &memory);
        let receive = receive.ok_or(ActivateError::MissingQueue(RECEIVE))?;
        let transmit = transmit.ok_or(ActivateError::MissingQueue(TRANSMIT))?;
        let mut port = Port::new(self.input.clone(), Arc::clone(&self.output), receive, transmit, transport);
        let events =
            port.events().map_err(|source| ActivateError::Worker { name: NAME.to_owned(), source })?;
        Ok((events, port))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reset();
    }
}
