// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `small-vmm KERNEL INITRD [COMMAND LINE]`: boots an arm64 Linux, its console on standard output, until it powers off.

#[cfg(target_arch = "aarch64")]
mod fdt;
#[cfg(target_arch = "aarch64")]
mod sys;
#[cfg(target_arch = "aarch64")]
mod vmm;

#[cfg(target_arch = "aarch64")]
fn main() -> std::process::ExitCode {
    match vmm::run(std::env::args().skip(1).collect()) {
        Ok(last) => eprintln!("small-vmm: {last}"),
        Err(e) => {
            eprintln!("small-vmm: {e}");
            return std::process::ExitCode::FAILURE;
        }
    }
    std::process::ExitCode::SUCCESS
}

#[cfg(not(target_arch = "aarch64"))]
fn main() -> std::process::ExitCode {
    eprintln!("small-vmm: this needs an arm64 host");
    std::process::ExitCode::FAILURE
}
