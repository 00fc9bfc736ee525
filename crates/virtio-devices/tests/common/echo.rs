// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device for tests of the transport: copies what is readable in a chain to what is writable.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use irqfd::Doorbell;
use virtio_devices::{
    ActivateError, Activation, Chain, Events, Interest, Ring, RingError, Transport, VirtioDevice, Worker,
};
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Driver, DriverQueue, EVENT_IDX, INDIRECT_DESC};

pub const TYPE: u32 = 42;
pub const FEATURE: u64 = 1 << 3 | 1 << 52;
/// What the device and the transport offer, but for the version.
pub const ALL: u64 = FEATURE | EVENT_IDX | INDIRECT_DESC;

/// Sends `text` through the device and back.
pub fn round_trip(driver: &mut Driver, queue: &mut DriverQueue, text: &[u8]) {
    let page = driver.pages(4096);
    let back = page + 2048;
    driver.memory.write_slice(text, GuestAddress(page)).unwrap();
    queue.want_interrupt(1);
    queue.add(&[(page, text.len() as u32, false), (back, 2048, true)]).unwrap();
    queue.kick(1);
    let (_, written) = queue.wait_used();
    assert_eq!(written as usize, text.len());
    let mut got = vec![0; text.len()];
    driver.memory.read_slice(&mut got, GuestAddress(back)).unwrap();
    assert_eq!(got, text);
}

/// What a test sees of the device, and tells it.
#[derive(Default)]
pub struct Echoed {
    pub activations: AtomicU64,
    pub resets: AtomicU64,
    pub fail: Mutex<Option<ActivateError>>,
    pub features: AtomicU64,
    pub queues: Mutex<Vec<u16>>,
    /// From the last activation.
    pub transport: Mutex<Option<Arc<dyn Transport>>>,
    pub config: Mutex<Vec<u8>>,
    /// Does not work on the queues: vhost would.
    pub idle: bool,
    pub bells: Mutex<Vec<Doorbell>>,
    /// Each worker holds one.
    pub alive: Arc<()>,
}

pub struct Echo {
    pub shared: Arc<Echoed>,
    sizes: Vec<u16>,
    workers: Vec<Worker>,
}

impl Echo {
    pub fn new(queues: usize) -> Self {
        Self::sharing(queues, Arc::default())
    }

    pub fn sharing(queues: usize, shared: Arc<Echoed>) -> Self {
        Self { shared, sizes: vec![64; queues], workers: Vec::new() }
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u32 {
        TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        // The transport's bits are not the device's to offer.
        FEATURE | 1 << 30 | 1 << 33
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.shared.config.lock().unwrap();
        for (byte, value) in data.iter_mut().zip(config.iter().skip(offset as usize)) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.shared.config.lock().unwrap();
        for (byte, value) in config.iter_mut().skip(offset as usize).zip(data) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, transport } = activation;
        self.shared.activations.fetch_add(1, Ordering::SeqCst);
        self.shared.features.store(features, Ordering::SeqCst);
        *self.shared.queues.lock().unwrap() = queues.iter().map(|queue| queue.index).collect();
        *self.shared.transport.lock().unwrap() = Some(transport.clone());
        *self.shared.bells.lock().unwrap() = queues.iter().map(|queue| queue.notify.clone()).collect();
        if let Some(error) = self.shared.fail.lock().unwrap().take() {
            return Err(error);
        }
        if self.shared.idle {
            return Ok(());
        }
        for queue in queues {
            let events = Events::new().unwrap();
            events.add(&queue, 0, Interest::Read).unwrap();
            let mut ring = Ring::new(queue, memory.clone());
            let transport = transport.clone();
            let alive = self.shared.alive.clone();
            self.workers.push(Worker::spawn("test-echo", events, move |_, _: &Events| {
                let _ = &alive;
                ring.notify().take().unwrap();
                match echo(&mut ring) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(e) => {
                        transport.needs_reset(&e);
                        ControlFlow::Break(())
                    }
                }
            })?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.resets.fetch_add(1, Ordering::SeqCst);
        *self.shared.transport.lock().unwrap() = None;
        self.workers.clear();
    }
}

fn echo(ring: &mut Ring) -> Result<(), RingError> {
    let mut chain = Chain::new();
    loop {
        ring.disable_notifications()?;
        while ring.pop(&mut chain)? {
            let mut data = vec![0; chain.readable_len() as usize];
            chain.read(ring.memory(), 0, &mut data)?;
            let written = chain.write(ring.memory(), 0, &data)?;
            ring.push(chain.head(), written as u32)?;
        }
        ring.interrupt()?;
        if !ring.enable_notifications()? {
            return Ok(());
        }
    }
}
