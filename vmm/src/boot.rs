// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where kernel, initial RAM disk and device tree lie in guest memory.
//!
//! Linux's `Documentation/arch/arm64/booting.rst`: the kernel at its offset from a 2 MiB boundary; the device tree at a multiple of
//! eight bytes, at most 2 MiB long and within one 2 MiB block for kernels before 4.2; the initial RAM disk anywhere within 32 GiB.
//! All three lie together at the start of memory, so that the host need not find pages elsewhere before the guest has asked for any.

use crate::error::{Error, Result};
use crate::layout::RAM_BASE;
use crate::size::Size;

const BLOCK: u64 = 2 << 20;
/// What a device tree gets: 512 vCPUs take some 60 KiB.
pub const FDT_MAX: u64 = 256 << 10;
/// The largest page a guest kernel may have.
const PAGE: u64 = 64 << 10;

/// Guest-physical addresses of what is loaded before the guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The 2 MiB boundary that the kernel's offset counts from.
    pub kernel_base: u64,
    /// The device tree.
    pub fdt: u64,
    /// The initial RAM disk.
    pub initrd: u64,
}

/// Finds places for a kernel of `image_size` bytes at `text_offset` and an initial RAM disk of `initrd` bytes.
///
/// # Errors
/// If `memory` is too small for them.
pub fn place(text_offset: u64, image_size: u64, initrd: u64, memory: Size) -> Result<Placement> {
    let too_big = || {
        Error::usage(format!(
            "kernel ({}) and initrd ({}) do not fit in {memory} of memory",
            Size(image_size),
            Size(initrd)
        ))
        .hint("give more --memory")
    };
    let end = RAM_BASE.checked_add(memory.0).ok_or_else(too_big)?;
    let kernel_end =
        RAM_BASE.checked_add(text_offset).and_then(|at| at.checked_add(image_size)).ok_or_else(too_big)?;
    let mut fdt = kernel_end.checked_next_multiple_of(PAGE).ok_or_else(too_big)?;
    if fdt / BLOCK != (fdt + FDT_MAX - 1) / BLOCK {
        fdt = fdt.checked_next_multiple_of(BLOCK).ok_or_else(too_big)?;
    }
    let initrd_at = fdt + FDT_MAX;
    if initrd_at.checked_add(initrd).is_none_or(|initrd_end| initrd_end > end) {
        return Err(too_big());
    }
    Ok(Placement { kernel_base: RAM_BASE, fdt, initrd: initrd_at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_too_big_for_the_memory_is_refused() {
        let memory = Size(128 << 20);
        assert!(place(0, 64 << 20, 32 << 20, memory).is_ok());
        for (kernel, initrd) in
            [(200 << 20, 0), (64 << 20, 64 << 20), (u64::MAX, 0), (0, u64::MAX), (128 << 20, 0)]
        {
            let line = place(0, kernel, initrd, memory).unwrap_err().one_line();
            assert!(line.contains("128M") && line.contains("--memory"), "{line}");
        }
    }

    proptest! {
        #[test]
        fn everything_lies_apart_within_memory_and_as_the_boot_protocol_wants_it(
            text_offset in prop::sample::select(vec![0_u64, 0x8_0000]),
            image in 1_u64..(96 << 20),
            initrd in 0_u64..(96 << 20),
        ) {
            let memory = Size(128 << 20);
            if let Ok(p) = place(text_offset, image, initrd, memory) {
                prop_assert_eq!(p.kernel_base % BLOCK, 0);
                prop_assert!(p.kernel_base + text_offset + image <= p.fdt);
                prop_assert_eq!(p.fdt % 8, 0);
                prop_assert_eq!(p.fdt / BLOCK, (p.fdt + FDT_MAX - 1) / BLOCK);
                prop_assert!(p.fdt + FDT_MAX <= p.initrd);
                prop_assert!(p.initrd + initrd <= RAM_BASE + memory.0);
            }
        }
    }
}
