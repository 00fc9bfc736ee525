// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's GIC as the kernel shows it in debugfs: `/sys/kernel/debug/kvm/PID-FD/vgic-state` (Linux 6.12, `arch/arm64/kvm/vgic/vgic-debug.c`).

use std::fs;
use std::path::{Path, PathBuf};

/// One interrupt at the GIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupt {
    /// Its number.
    pub intid: u32,
    /// Whether the guest has enabled it.
    pub enabled: bool,
    /// Whether it waits for a vCPU: latched, or a line that is up.
    pub pending: bool,
    /// Whether a vCPU has taken it and not ended it.
    pub active: bool,
    /// Whether the guest has configured it as level.
    pub level: Option<bool>,
    /// Which vCPU it is for, by its index.
    pub target: Option<u32>,
}

/// What the kernel shows of a whole GIC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GicState {
    /// Whether the guest has switched the distributor on.
    pub enabled: Option<bool>,
    interrupts: Vec<Interrupt>,
}

impl GicState {
    /// Reads the kernel's text. Lines that are not understood are left out: it is for debugging, and may change.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut state = Self::default();
        for line in text.lines() {
            if let Some(value) = line.strip_prefix("enabled:") {
                state.enabled = value.trim().parse::<u8>().ok().map(|value| value != 0);
            }
            state.interrupts.extend(parse_line(line));
        }
        state
    }

    /// An SPI or LPI.
    #[must_use]
    pub fn interrupt(&self, intid: u32) -> Option<Interrupt> {
        self.interrupts.iter().find(|interrupt| interrupt.intid == intid).copied()
    }

    /// That of the VM with this [`directory`]; `None` where debugfs is not there or not for us.
    #[must_use]
    pub fn read(directory: &Path) -> Option<Self> {
        fs::read_to_string(directory.join("vgic-state")).ok().map(|text| Self::parse(&text))
    }
}

/// The directory in debugfs of this process's VM whose descriptor is `vm`.
#[must_use]
pub fn directory(vm: i32) -> PathBuf {
    Path::new("/sys/kernel/debug/kvm").join(format!("{}-{vm}", std::process::id()))
}

/// `SPI   32      0 0001011        0        0   0 192      -1`: type, INTID, target, then pending latch, line level, active, enabled, hardware,
/// configuration and group. Those of each vCPU's own are not looked at: nothing here is routed to them.
fn parse_line(line: &str) -> Option<Interrupt> {
    let mut words = line.split_whitespace();
    if !matches!(words.next()?, "SPI" | "LPI") {
        return None;
    }
    let intid = words.next()?.parse().ok()?;
    let target: i32 = words.next()?.parse().ok()?;
    let flags: Vec<bool> = words.next()?.chars().map(|c| c == '1').collect();
    let &[latch, high, active, enabled, _hardware, level, ..] = flags.as_slice() else { return None };
    Some(Interrupt {
        intid,
        enabled,
        // A line that is up makes a level interrupt pending, also while it is active; then it is no news.
        pending: latch || (level && high && !active),
        active,
        level: Some(level),
        target: u32::try_from(target).ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Distributor
===========
vgic_model:	GICv3
nr_spis:	64
nr_lpis:	2
enabled:	1

P=pending_latch, L=line_level, A=active
E=enabled, H=hw, C=config (level=1, edge=0)
G=group

VCPU 0 TYP   ID TGT_ID PLAEHCG     HWID   TARGET SRC PRI VCPU_ID
----------------------------------------------------------------
       SGI    0      0 0001001        0        0   0 192      -1 
       PPI   27      0 0001111       27        0   0 192      -1 

SPI  0 TYP   ID TGT_ID PLAEHCG     HWID   TARGET SRC PRI VCPU_ID
----------------------------------------------------------------
       SPI   32      1 0101011        0        0   0 192       0 
       SPI   33      0 0110011        0        0   0 192      -1 
       LPI 8192      0 0001001        0        0   0 192      -1 
       LPI 8193     -1 1000001        0        0   0 192      -1 
";

    #[test]
    fn the_kernels_text_is_read() {
        let state = GicState::parse(TEXT);
        assert_eq!(state.enabled, Some(true));
        let spi = state.interrupt(32).unwrap();
        assert!(spi.enabled && spi.pending && !spi.active);
        assert_eq!((spi.level, spi.target), (Some(true), Some(1)));
        let taken = state.interrupt(33).unwrap();
        assert!(!taken.enabled && !taken.pending && taken.active);
        let lpi = state.interrupt(8193).unwrap();
        assert!(!lpi.enabled && lpi.pending);
        assert_eq!((lpi.level, lpi.target), (Some(false), None));
        assert_eq!(state.interrupt(27), None, "a vCPU's own");
    }

    #[test]
    fn another_kernels_text_is_no_harm() {
        for text in
            ["", "SPI", "SPI x", "SPI 32 0", "SPI 32 0 01", "enabled:\tmaybe", "LPI 99999999999 0 0000000"]
        {
            assert_eq!(GicState::parse(text), GicState::default(), "{text}");
        }
    }
}
