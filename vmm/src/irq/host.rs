// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's counts of the interrupts of devices that are passed through.
//!
//! Such a device signals from the host's interrupt handler to KVM, and nobody in this process sees it. The handler is counted in `/proc/interrupts`, where VFIO names it
//! after device and vector: `vfio-msix[3](0000:00:08.0)`, `vfio-msi[0](…)`, `vfio-intx(…)` (Linux 6.12, `drivers/vfio/pci/vfio_pci_intrs.c`), `vfio-irq[0](9010000.pl031)`
//! (`drivers/vfio/platform/vfio_platform_irq.c`). The count is the host's: since the handler was last set up, and whether or not the guest had the vector unmasked.

use std::collections::BTreeMap;
use std::fs;

use super::collect::Host;

/// Counts by VFIO's names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCounts(BTreeMap<String, u64>);

impl HostCounts {
    /// Those of now. None if the file cannot be read.
    #[must_use]
    pub fn read() -> Self {
        fs::read_to_string("/proc/interrupts").map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// The lines with a name of VFIO's, each with the sum over all CPUs. Several handlers of one name are added up.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let Some((_, rest)) = line.split_once(':') else { continue };
            let total =
                rest.split_whitespace().map_while(|word| word.parse::<u64>().ok()).fold(0, u64::wrapping_add);
            // A line that is shared has several names, with commas.
            for name in rest.split_whitespace().map(|word| word.trim_end_matches(',')) {
                if name.starts_with("vfio-") {
                    *counts.entry(name.to_owned()).or_insert(0) += total;
                }
            }
        }
        Self(counts)
    }

    /// The count of a handler.
    #[must_use]
    pub fn of(&self, name: &str) -> Host {
        self.0.get(name).map_or(Host::Silent, |&count| Host::Counts(count))
    }
}

/// What VFIO calls the handler of a PCI function's line.
#[must_use]
pub fn intx(device: &str) -> String {
    format!("vfio-intx({device})")
}

/// What VFIO calls the handler of a PCI function's vector.
#[must_use]
pub fn vector(device: &str, msix: bool, index: usize) -> String {
    format!("vfio-msi{}[{index}]({device})", if msix { "x" } else { "" })
}

/// What VFIO calls the handler of a platform device's interrupt.
#[must_use]
pub fn platform(device: &str, index: usize) -> String {
    format!("vfio-irq[{index}]({device})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_lines_are_read_and_added_up() {
        let text = "           CPU0       CPU1
  9:          0          0     GICv3  25 Level     vgic
 35:        120          3     GICv3  36 Level     vfio-intx(0000:00:09.0), other
 40:         17         25  ITS-PCI-MSIX-0000:00:08.0   3 Edge      vfio-msix[3](0000:00:08.0)
 41:          0          1     GICv3  34 Level     vfio-irq[0](9010000.pl031)
IPI0:        57         80       Rescheduling interrupts
Err:          0
";
        let counts = HostCounts::parse(text);
        assert_eq!(counts.of(&vector("0000:00:08.0", true, 3)), Host::Counts(42));
        assert_eq!(counts.of(&intx("0000:00:09.0")), Host::Counts(123));
        assert_eq!(counts.of(&platform("9010000.pl031", 0)), Host::Counts(1));
        assert_eq!(counts.of(&vector("0000:00:08.0", false, 3)), Host::Silent);
    }
}
