// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device: VIRTIO 1.3, section 5.4.

use std::ops::ControlFlow;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::worker::{Events, Interest, Worker};
use crate::{ActivateError, Activation, Chain, Ring, RingError, Transport, VirtioDevice};

/// The virtio device ID.
const ENTROPY: u32 = 4;
/// The most that one request gets. The driver asks again if it wants more: the device may use any part of a buffer, and Linux asks for 64 bytes at a time.
const AT_ONCE: usize = 4096;
const QUEUE: u16 = 0;
const SIZES: [u16; 1] = [64];

/// A source of the host's randomness (`getrandom`) for the guest.
#[derive(Debug, Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl Rng {
    /// The device.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, transport, .. } = activation;
        let queue = queues
            .into_iter()
            .find(|queue| queue.index == QUEUE)
            .ok_or(ActivateError::MissingQueue(QUEUE))?;
        let failed = |source| ActivateError::Worker { name: "virtio-rng".to_owned(), source };
        let events = Events::new().map_err(failed)?;
        events.add(&queue, 0, Interest::Read).map_err(failed)?;
        let mut source = Source { ring: Ring::new(queue, memory), chain: Chain::new() };
        self.worker =
            Some(Worker::spawn("virtio-rng", events, move |_, _: &Events| source.ready(&transport))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// What the worker has.
struct Source {
    ring: Ring,
    chain: Chain,
}

impl Source {
    fn ready(&mut self, transport: &Arc<dyn Transport>) -> ControlFlow<()> {
        // An eventfd that is open can be read.
        let _ = self.ring.notify().take();
        match self.serve() {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                transport.needs_reset(&e);
                ControlFlow::Break(())
            }
        }
    }

    /// Serves all there is. If there is no end of it, comes back soon, so that a stop is heard.
    fn serve(&mut self) -> Result<(), RingError> {
        for _ in 0..self.ring.size() {
            self.ring.disable_notifications()?;
            if self.ring.pop(&mut self.chain)? {
                let written = self.fill()?;
                self.ring.push(self.chain.head(), written)?;
                continue;
            }
            self.ring.interrupt()?;
            if !self.ring.enable_notifications()? {
                return Ok(());
            }
        }
        self.ring.interrupt()?;
        // An eventfd that is open takes the signal.
        let _ = self.ring.notify().ring();
        Ok(())
    }

    /// Puts random bytes into the chain. Returns how many.
    fn fill(&mut self) -> Result<u32, RingError> {
        let mut bytes = [0; AT_ONCE];
        let wanted = usize::try_from(self.chain.writable_len()).unwrap_or(AT_ONCE).min(AT_ONCE);
        let mut filled = 0;
        while filled < wanted {
            let Some(rest) = bytes.get_mut(filled..wanted) else { break };
            // It blocks only before the host's pool is initialised, early at its boot.
            match rustix::io::retry_on_intr(|| getrandom(&mut *rest, GetRandomFlags::empty())) {
                Ok(more) if more > 0 => filled += more,
                // The kernel has it since 3.17. A driver that gets nothing asks again.
                _ => break,
            }
        }
        let written = self.chain.write(self.ring.memory(), 0, bytes.get(..filled).unwrap_or_default())?;
        Ok(u32::try_from(written).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Display;
    use std::os::fd::BorrowedFd;
    use std::sync::Mutex;

    use super::*;
    use crate::lock::lock;
    use crate::testing::{Driver, writable};
    use crate::{ActiveQueue, QueueInterrupt};

    /// A driver that answers an interrupt with another request, at once and so many times.
    struct Eager {
        driver: Mutex<(Driver, u32)>,
    }

    impl Transport for Eager {
        fn interrupt_queue(&self, _: u16) -> Result<(), irqfd::Error> {
            let (driver, left) = &mut *lock(&self.driver);
            if *left > 0 {
                *left -= 1;
                driver.queues[0].add_quietly(&[writable(Driver::DATA, 8)]);
            }
            Ok(())
        }

        fn queue_eventfd(&self, _: u16) -> Result<BorrowedFd<'_>, ActivateError> {
            Err(ActivateError::MissingQueue(0))
        }

        fn config_changed(&self) {}

        fn needs_reset(&self, why: &dyn Display) {
            panic!("{why}");
        }
    }

    /// A reset waits for what the thread does before it looks for the stop: that has an end, however fast the driver is.
    #[test]
    fn a_driver_that_always_wants_more_does_not_keep_the_thread_from_its_end() {
        const REQUESTS: u32 = 1000;
        let mut driver = Driver::new(&SIZES, 0, 0x1000);
        driver.queues[0].add_quietly(&[writable(Driver::DATA, 8)]);
        let mut activation = driver.activation(0);
        let served = driver.queues[0].spy();
        let eager = Arc::new(Eager { driver: Mutex::new((driver, REQUESTS - 1)) });
        let interrupt = QueueInterrupt::new(Arc::clone(&eager) as _, 0);
        let queue = ActiveQueue { interrupt, ..activation.queues.remove(0) };
        let mut source = Source { ring: Ring::new(queue, activation.memory), chain: Chain::new() };
        let mut turns = 0;
        while u32::from(served()) < REQUESTS {
            let before = served();
            source.serve().unwrap();
            assert!(served() - before <= SIZES[0]);
            let more = u32::from(served()) < REQUESTS;
            assert_eq!(source.ring.notify().take().unwrap(), u64::from(more), "it comes back by itself");
            turns += 1;
        }
        assert!(turns >= REQUESTS / u32::from(SIZES[0]));
    }
}
