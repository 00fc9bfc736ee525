// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the runner of the tests provides: the program, kernels, initial RAM disks.

use std::env;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::Scratch;

/// The interrupt controller of the machine that the tests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gic {
    /// GICv2: its guests get a GICv2, and MSIs a v2m frame.
    V2,
    /// GICv3 or GICv4: its guests get a GICv3 with an ITS.
    V3,
}

impl fmt::Display for Gic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
        })
    }
}

/// An arm64 host with KVM, and what to run on it.
#[derive(Debug, Clone)]
pub struct Host {
    /// The `doorbell` program.
    pub doorbell: PathBuf,
    /// The tests' own kernel.
    pub kernel: PathBuf,
    /// Debian's kernel.
    pub debian_kernel: PathBuf,
    /// The initial RAM disk with a shell.
    pub initrd: PathBuf,
    /// The one that powers off at once.
    pub bench_initrd: PathBuf,
    /// The host's own interrupt controller.
    pub gic: Gic,
}

impl Host {
    /// The host that this process runs on.
    ///
    /// # Errors
    /// The reason why there is none.
    pub fn find() -> Result<Self, String> {
        if cfg!(not(target_arch = "aarch64")) {
            return Err("needs an arm64 host".to_owned());
        }
        let path = |name: &str| -> Result<PathBuf, String> {
            env::var_os(name)
                .map(PathBuf::from)
                .ok_or_else(|| format!("{name} is not set: run it by `make test-arm64`"))
        };
        Ok(Self {
            doorbell: path("DOORBELL_BIN")?,
            kernel: path("DOORBELL_GUEST_KERNEL")?,
            debian_kernel: path("DOORBELL_GUEST_KERNEL_DEBIAN")?,
            initrd: path("DOORBELL_GUEST_INITRD")?,
            bench_initrd: path("DOORBELL_GUEST_BENCH_INITRD")?,
            gic: match env::var("DOORBELL_HOST_GIC").as_deref() {
                Ok("v2") => Gic::V2,
                Ok(_) => Gic::V3,
                Err(_) => return Err("DOORBELL_HOST_GIC is not set: run it by `make test-arm64`".to_owned()),
            },
        })
    }

    /// Whether the tests may do what only root may.
    #[must_use]
    pub fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    /// A copy of the program in `scratch`, for a user who may be locked out of where the program lies.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn program_for_anybody(&self, scratch: &Scratch) -> PathBuf {
        for directory in [scratch.path().parent().unwrap(), scratch.path()] {
            let mut permissions = fs::metadata(directory).unwrap().permissions();
            permissions.set_mode(permissions.mode() | 0o055);
            fs::set_permissions(directory, permissions).unwrap();
        }
        let copy = scratch.path().join("doorbell");
        fs::copy(&self.doorbell, &copy).unwrap();
        copy
    }
}
