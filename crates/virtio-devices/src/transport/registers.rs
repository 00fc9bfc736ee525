// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The common configuration structure, and what a driver makes of a device by writing to it. VIRTIO 1.3, sections 2.1, 3.1.1 and 4.1.4.3.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};

use crate::device::read_image;

/// The driver has found the device.
pub(super) const ACKNOWLEDGE: u8 = status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
/// The driver knows how to drive it.
pub(super) const DRIVER: u8 = status(VIRTIO_CONFIG_S_DRIVER);
/// The driver is set up.
pub(super) const DRIVER_OK: u8 = status(VIRTIO_CONFIG_S_DRIVER_OK);
/// Driver and device agree on features.
pub(super) const FEATURES_OK: u8 = status(VIRTIO_CONFIG_S_FEATURES_OK);
/// The driver has given up.
pub(super) const FAILED: u8 = status(VIRTIO_CONFIG_S_FAILED);
/// The device cannot go on. virtio-bindings calls it `NEEDS_RESET`, of another type.
pub(super) const NEEDS_RESET: u8 = 0x40;

/// No vector: what an unmapped interrupt reads as, and what an attempt to map one that there is not leaves (section 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// The structure's length in the BAR. What follows `queue_reset` is of features that are not offered, and reads zero.
pub(super) const LENGTH: u32 = 0x40;

#[expect(clippy::cast_possible_truncation, reason = "bits of an 8-bit register, which bindgen calls u32")]
const fn status(bit: u32) -> u8 {
    bit as u8
}

/// One virtqueue as the driver has set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueSetup {
    /// What the device allows.
    pub(super) max: u16,
    /// What the driver wants.
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    /// Guest-physical addresses of the descriptor table ("descriptor area"), the available ring ("driver area"), the used ring ("device area").
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl QueueSetup {
    fn new(max: u16) -> Self {
        Self { max, size: max, vector: NO_VECTOR, enabled: false, descriptors: 0, available: 0, used: 0 }
    }

    /// Whether a split ring can be so: section 2.7.
    fn is_possible(&self) -> bool {
        self.size.is_power_of_two()
            && self.size <= self.max
            && self.descriptors.is_multiple_of(16)
            && self.available.is_multiple_of(2)
            && self.used.is_multiple_of(4)
    }
}

/// What others than the driver change, as a read of the registers is to show it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Live {
    pub(super) generation: u8,
    pub(super) needs_reset: bool,
}

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// The driver has written 0 to the status. The registers are as after a reset already.
    Reset,
    /// DRIVER_OK was set, and stands.
    Activate,
    /// An interrupt was mapped to another vector.
    Vectors,
}

/// The registers.
#[derive(Debug, Clone)]
pub(super) struct CommonConfig {
    offered: u64,
    /// Vectors of the function: 0 without MSI-X.
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl CommonConfig {
    pub(super) fn new(offered: u64, vectors: u16, queue_sizes: &[u16]) -> Self {
        Self {
            offered,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().copied().map(QueueSetup::new).collect(),
        }
    }

    pub(super) fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    pub(super) fn status(&self) -> u8 {
        self.status
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// What driver and device have agreed on, once FEATURES_OK stands.
    pub(super) fn features(&self) -> u64 {
        self.driver_features & self.offered
    }

    pub(super) fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max);
        }
    }

    /// Reads any bytes into `data`, which is zeroed already: what lies beyond the end reads zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], live: Live) {
        read_image(&self.image(live), offset, data);
    }

    /// The structure as it is in memory, little-endian.
    fn image(&self, live: Live) -> [u8; LENGTH as usize] {
        let mut image = [0; LENGTH as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = image.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &window(self.offered, self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &window(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        // At most 1024: the transport's constructor sees to it.
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(u16::MAX).to_le_bytes());
        put(0x14, &[self.status | if live.needs_reset { NEEDS_RESET } else { 0 }]);
        put(0x15, &[live.generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that there is not has size 0, and no vector.
        let absent = QueueSetup::new(0);
        let queue = self.queues.get(usize::from(self.queue_select)).unwrap_or(&absent);
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &queue.vector.to_le_bytes());
        put(0x1c, &u16::from(queue.enabled).to_le_bytes());
        put(0x1e, &(if queue.max == 0 { 0 } else { self.queue_select }).to_le_bytes());
        put(0x20, &queue.descriptors.to_le_bytes());
        put(0x28, &queue.available.to_le_bytes());
        put(0x30, &queue.used.to_le_bytes());
        image
    }

    /// Writes one field in its natural width; 64-bit fields also by halves (section 4.1.3.1). Anything else is ignored, and so is what the driver
    /// must not do.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let value = data.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        #[expect(clippy::cast_possible_truncation, reason = "as wide as the write")]
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = value as u32,
            (0x08, 4) => self.driver_feature_select = value as u32,
            (0x0c, 4) => self.write_features(value as u32),
            (0x10, 2) => {
                self.config_vector = self.vector(value as u16);
                return Effect::Vectors;
            }
            (0x14, 1) => return self.write_status(value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            (0x18..0x40, _) => return self.write_queue(offset, data.len(), value),
            _ => {}
        }
        Effect::Nothing
    }

    /// Until FEATURES_OK; what is beyond 64 bits is not offered either, and remembering that the driver has asked for it is not worth it.
    fn write_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn vector(&self, wanted: u16) -> u16 {
        if wanted < self.vectors { wanted } else { NO_VECTOR }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        // The driver must not take a bit back, and DEVICE_NEEDS_RESET is not its own to set: section 2.1.1.
        let mut wanted = self.status | value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED);
        let new = wanted & !self.status;
        if new & FEATURES_OK != 0 && (wanted & DRIVER == 0 || !self.features_are_acceptable()) {
            // The driver reads it back: section 3.1.1, step 6.
            wanted &= !FEATURES_OK;
        }
        let startable = wanted & FEATURES_OK != 0 && wanted & FAILED == 0;
        if new & DRIVER_OK != 0 && !startable {
            wanted &= !DRIVER_OK;
        }
        let starts = wanted & !self.status & DRIVER_OK != 0;
        self.status = wanted;
        if starts { Effect::Activate } else { Effect::Nothing }
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.offered == 0 && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn write_queue(&mut self, offset: u64, length: usize, value: u64) -> Effect {
        let vector = self.vector(u16::try_from(value).unwrap_or(NO_VECTOR));
        let running = self.status & DRIVER_OK != 0;
        let negotiated = self.status & FEATURES_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return Effect::Nothing };
        if (offset, length) == (0x1a, 2) {
            queue.vector = vector;
            return Effect::Vectors;
        }
        // Once enabled, a queue stays as it is until the device is reset: section 4.1.4.3.2.
        if queue.enabled || running {
            return Effect::Nothing;
        }
        match (offset, length) {
            (0x18, 2) => queue.size = u16::try_from(value).unwrap_or(0),
            (0x1c, 2) => queue.enabled = value == 1 && negotiated && queue.is_possible(),
            (0x20 | 0x24, 4) | (0x20, 8) => put_half(&mut queue.descriptors, offset & 4, length, value),
            (0x28 | 0x2c, 4) | (0x28, 8) => put_half(&mut queue.available, offset & 4, length, value),
            (0x30 | 0x34, 4) | (0x30, 8) => put_half(&mut queue.used, offset & 4, length, value),
            _ => {}
        }
        Effect::Nothing
    }
}

/// The 32 bits of `features` that `select` shows.
#[expect(clippy::cast_possible_truncation, reason = "the half that is wanted")]
fn window(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn put_half(field: &mut u64, byte: u64, length: usize, value: u64) {
    *field = match (byte, length) {
        (_, 8) => value,
        (0, _) => *field & !0xffff_ffff | value,
        _ => *field & 0xffff_ffff | value << 32,
    };
}

#[cfg(test)]
#[path = "registers_tests.rs"]
mod tests;
