// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel makes of a register that says where a table lies and how it is cached (Linux 6.12,
//! `arch/arm64/kvm/vgic/vgic-mmio-v3.c` and `vgic-its.c`, `vgic_sanitise_*`).

/// Where a kind of register has the two fields of cacheability: their lowest bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    inner: u32,
    outer: u32,
}

/// GITS_CBASER and GITS_BASER.
const ITS: Layout = Layout { inner: 59, outer: 53 };
/// GICR_PROPBASER and GICR_PENDBASER.
const REDISTRIBUTOR: Layout = Layout { inner: 7, outer: 56 };

const SHAREABILITY: u32 = 10;
const INNER_SHAREABLE: u64 = 1;
const OUTER_SHAREABLE: u64 = 2;
/// `GIC_BASER_CACHE_nC`: not cached. What is below it is less than that.
const NOT_CACHED: u64 = 1;
/// `GIC_BASER_CACHE_RaWb`
const READ_ALLOCATE_WRITE_BACK: u64 = 3;
/// GITS_BASER.Page_Size: there are only pages of 64 KiB.
const PAGE_SIZE: u64 = 3 << 8;
const PAGE_SIZE_64K: u64 = 2 << 8;

const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

impl Layout {
    /// What a register comes with.
    const fn initial(self) -> u64 {
        (READ_ALLOCATE_WRITE_BACK << self.inner) | (INNER_SHAREABLE << SHAREABILITY)
    }

    /// No memory of the guest's is outer shareable or not cached at all; the outer caches do as the inner ones, or nothing.
    const fn sanitise(self, mut value: u64) -> u64 {
        if (value >> SHAREABILITY) & 3 == OUTER_SHAREABLE {
            value = (value & !(3 << SHAREABILITY)) | (INNER_SHAREABLE << SHAREABILITY);
        }
        if (value >> self.inner) & 7 <= NOT_CACHED {
            value = (value & !(7 << self.inner)) | (READ_ALLOCATE_WRITE_BACK << self.inner);
        }
        if (value >> self.outer) & 7 > NOT_CACHED {
            value &= !(7 << self.outer);
        }
        value
    }
}

/// `INITIAL_BASER_VALUE`
pub(super) const INITIAL_BASER: u64 = ITS.initial() | PAGE_SIZE_64K;
/// `INITIAL_PROPBASER_VALUE`, `INITIAL_PENDBASER_VALUE`
pub(super) const INITIAL_LPI_TABLE: u64 = REDISTRIBUTOR.initial();
/// `GICR_PENDBASER_PTZ`: the table is all zeros. It is never read back.
pub(super) const PENDING_TABLE_ZERO: u64 = 1 << 62;

pub(super) const fn sanitise_baser(value: u64) -> u64 {
    (ITS.sanitise(value) & !PAGE_SIZE) | PAGE_SIZE_64K
}

/// The queue lies on 64 KiB.
pub(super) const fn sanitise_cbaser(value: u64) -> u64 {
    ITS.sanitise(value) & !bits(15, 12)
}

pub(super) const fn sanitise_propbaser(value: u64) -> u64 {
    REDISTRIBUTOR.sanitise(value) & !(bits(63, 59) | bits(55, 52) | bits(6, 5))
}

pub(super) const fn sanitise_pendbaser(value: u64) -> u64 {
    let reserved = bits(63, 63) | bits(61, 59) | bits(55, 52) | bits(15, 12) | bits(6, 0);
    REDISTRIBUTOR.sanitise(value) & !reserved
}

/// The half of a 64-bit register at an offset.
pub(super) fn half(register: u64, offset: u32) -> u32 {
    u32::try_from((register >> (8 * (offset & 4))) & 0xffff_ffff).unwrap_or(0)
}

/// `update_64bit_reg`: the register with its half at an offset replaced.
pub(super) fn with_half(register: u64, offset: u32, value: u32) -> u64 {
    let shift = 8 * (offset & 4);
    (register & !(0xffff_ffff << shift)) | (u64::from(value) << shift)
}
