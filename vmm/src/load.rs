// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is put into the guest's memory before it starts.

use std::fs;
use std::path::PathBuf;
use std::thread;

use vm_memory::{Bytes, GuestAddress};

use crate::boot::{self, Placement};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::fdt;
use crate::kernel::{self, Initrd, Kernel};
use crate::outcome::{Outcome, Verdict};
use crate::sys::VmMemory;

/// Puts kernel, initial RAM disk and device tree into the guest's memory. Returns where the kernel starts.
pub(crate) fn load(
    config: &Config,
    parts: &VmMemory,
    kernel: &mut Kernel,
    initrd: Option<Initrd>,
    placement: &Placement,
    tree: &fdt::Machine<'_>,
) -> Result<u64> {
    let memory = parts.memory();
    let entry = kernel.load(memory, GuestAddress(placement.kernel_base))?;
    if let Some(mut initrd) = initrd {
        let len = usize::try_from(initrd.len()).unwrap_or(usize::MAX);
        memory.read_exact_volatile_from(GuestAddress(placement.initrd), initrd.file(), len).map_err(|e| {
            Error::usage(format!("cannot read the initrd {}", initrd.path().display())).because(e)
        })?;
    }
    let blob = tree.build().map_err(|e| Error::failure("cannot write the device tree").because(e))?;
    if blob.len() as u64 > boot::FDT_MAX {
        return Err(Error::failure(format!("the device tree has {} bytes, more than fit", blob.len())));
    }
    memory
        .write_slice(&blob, GuestAddress(placement.fdt))
        .map_err(|e| Error::failure("cannot put the device tree into guest memory").because(e))?;
    if let Some(path) = &config.dump_fdt {
        fs::write(path, &blob).map_err(|e| {
            Error::usage(format!("cannot write the device tree to {}", path.display()))
                .because(e)
                .hint("check --dump-fdt")
        })?;
    }
    Ok(entry)
}

/// Entropy for the guest's first moments. Without any the guest boots too, and says so.
pub(crate) fn seed() -> ([u8; 64], u64) {
    let mut bytes = [0; 72];
    if let Err(e) = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        tracing::warn!("no entropy for the guest: {e}");
    }
    let (rng, kaslr) = bytes.split_at(64);
    (rng.try_into().unwrap_or([0; 64]), kaslr.try_into().map_or(0, u64::from_ne_bytes))
}

/// Checks a long initial RAM disk while the guest already runs. A damaged one ends the run: the guest has been given a part of a file.
pub(crate) fn check_beside_the_guest(path: PathBuf, verdict: Verdict) {
    let check = move || {
        if let Err(e) = kernel::check_initrd(&path) {
            verdict.set(Outcome::Failed(e));
        }
    };
    if let Err(e) = thread::Builder::new().name("initrd-check".into()).spawn(check) {
        tracing::warn!("the initrd goes unchecked: {e}");
    }
}
