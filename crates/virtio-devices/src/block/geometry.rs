// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the driver is told of a disk: VIRTIO 1.3, section 5.2.4.

use super::operation::SERIAL;

/// The unit of every sector number, whatever the blocks are.
pub(super) const SECTOR: u64 = 512;
/// Buffers of a request's data: with header and status, a table of 256 descriptors, which is a page.
const MAX_DATA_SEGMENTS: u32 = 254;
/// Sectors that a range to discard or to zero may have: just below 2 GiB, so that a host's file system is not busy for too long with one.
pub(super) const MAX_RANGE_SECTORS: u32 = 0x003f_ffff;
/// Ranges of one request.
pub(super) const MAX_RANGES: u32 = 16;

/// A disk's size and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Whole sectors of 512 bytes.
    pub(super) sectors: u64,
    /// The smallest unit of a request, in bytes: 512, or what direct I/O wants.
    pub(super) block: u32,
    /// What the host writes without reading first, in bytes.
    pub(super) physical: u32,
    /// What addresses and lengths of buffers have to be multiples of: 1 but for direct I/O.
    pub(super) align: usize,
    pub(super) readonly: bool,
    pub(super) serial: [u8; SERIAL],
    pub(super) queues: u16,
}

/// Bytes of the configuration space, up to and with `write_zeroes_may_unmap`.
const CONFIG: usize = 57;

impl Geometry {
    /// The byte at which `length` bytes from `sector` on are, if they are whole blocks of the disk.
    pub(super) fn locate(&self, sector: u64, length: u64) -> Option<u64> {
        let block = u64::from(self.block);
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(length)?;
        let whole = offset.is_multiple_of(block) && length.is_multiple_of(block);
        (whole && end <= self.sectors * SECTOR).then_some(offset)
    }

    /// Sectors of a range, in whole blocks: a driver cuts what is longer into pieces of so many (Linux 6.12, `block/blk-lib.c`, `__blkdev_issue_write_zeroes`).
    fn max_range(&self) -> u32 {
        MAX_RANGE_SECTORS - MAX_RANGE_SECTORS % (self.block / 512)
    }

    /// The configuration space.
    pub(super) fn config(&self, writeback: bool) -> [u8; CONFIG] {
        let mut config = [0; CONFIG];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = config.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &self.sectors.to_le_bytes());
        put(12, &MAX_DATA_SEGMENTS.to_le_bytes());
        put(20, &self.block.to_le_bytes());
        // A physical block is 2^n logical ones.
        let exponent = (self.physical / self.block).max(1).ilog2();
        put(24, &[u8::try_from(exponent).unwrap_or(0), 0]);
        // The smallest size worth writing, in logical blocks.
        let minimum = u16::try_from((self.physical / self.block).max(1)).unwrap_or(1);
        put(26, &minimum.to_le_bytes());
        put(32, &[u8::from(writeback)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &self.max_range().to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        // What a hole in a file is made of.
        put(44, &(self.physical.max(self.block) / 512).to_le_bytes());
        put(48, &self.max_range().to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }
}

/// Where the driver can write: the field `writeback`.
pub(super) const WRITEBACK: u64 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_range_is_one_that_a_request_may_have() {
        for (block, most) in [(512, 0x3f_ffff), (1024, 0x3f_fffe), (4096, 0x3f_fff8)] {
            let geometry = Geometry {
                sectors: 1 << 30,
                block,
                physical: 4096,
                align: 1,
                readonly: false,
                serial: [0; SERIAL],
                queues: 1,
            };
            let config = geometry.config(true);
            for (field, at) in [("max_discard_sectors", 36), ("max_write_zeroes_sectors", 48)] {
                let bytes = config.get(at..at + 4).unwrap().try_into().unwrap();
                assert_eq!(u32::from_le_bytes(bytes), most, "{field}, blocks of {block}");
            }
            // Section 5.2.4: physical blocks as a power of two of logical ones, where the first begins, the least that is worth writing.
            let [min_low, min_high] = u16::try_from(4096 / block).unwrap().to_le_bytes();
            let exponent = u8::try_from((4096 / block).ilog2()).unwrap();
            assert_eq!(config.get(24..28).unwrap(), [exponent, 0, min_low, min_high]);
            assert_eq!(config.get(44..48).unwrap(), 8_u32.to_le_bytes(), "discard_sector_alignment");
            assert_eq!(geometry.locate(0, u64::from(most) * SECTOR), Some(0));
        }
    }
}
