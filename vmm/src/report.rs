// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run was like, for a person to read.

use std::fmt;

use vgic::GicConfig;

use crate::bus::BusCounts;
use crate::serial::SerialCounts;
use crate::size::Size;

/// What a run was like.
#[derive(Debug, Clone)]
pub struct Report {
    /// The guest's interrupt controller.
    pub gic: GicConfig,
    /// How many vCPUs it had.
    pub vcpus: u32,
    /// How much memory it had.
    pub memory: Size,
    /// Optional parts of the CPU it had, e.g. "PMU".
    pub features: Vec<&'static str>,
    /// Accesses to devices in this process.
    pub bus: BusCounts,
    /// Bytes over the serial port.
    pub serial: SerialCounts,
    /// Interrupts of the serial port: raised by us, and EOIs that came back.
    pub serial_line: (u64, u64),
    /// A line for each device beyond those that every machine has.
    pub devices: Vec<String>,
    /// How often `KVM_RUN` returned, over all vCPUs.
    pub returns: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = rustix::system::uname();
        writeln!(f, "doorbell: report")?;
        writeln!(
            f,
            "  host         {} {} on {}",
            host.sysname().to_string_lossy(),
            host.release().to_string_lossy(),
            host.machine().to_string_lossy()
        )?;
        writeln!(f, "  GIC          {}", self.gic)?;
        let features =
            if self.features.is_empty() { "nothing optional".into() } else { self.features.join(", ") };
        writeln!(f, "  vCPUs        {} with {features}", self.vcpus)?;
        writeln!(f, "  memory       {}", self.memory)?;
        writeln!(
            f,
            "  serial port  {} bytes out, {} in; level interrupt raised {} times, {} EOIs came back",
            self.serial.sent, self.serial.received, self.serial_line.0, self.serial_line.1
        )?;
        for device in &self.devices {
            writeln!(f, "  device       {device}")?;
        }
        writeln!(
            f,
            "  exits        KVM_RUN returned {} times: {} device reads, {} writes",
            self.returns, self.bus.reads, self.bus.writes
        )
    }
}
