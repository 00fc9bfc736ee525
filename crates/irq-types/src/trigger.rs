// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::fmt;

/// How an interrupt line says "now".
///
/// The device-tree flag, the route and the trigger of a line are all made from one value of this type, so that they
/// cannot disagree: the vGIC reports an EOI only for an interrupt that the guest has configured as level (Linux 6.12,
/// `arch/arm64/kvm/vgic/vgic-v3.c`, `vgic_v3_fold_lr_state`), so a wrong flag is an interrupt that dies after its first
/// arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TriggerMode {
    /// A rising edge is one interrupt. Nothing comes back.
    Edge,
    /// The line is high while the device wants attention; the EOI comes back as a resample event.
    Level,
}

impl TriggerMode {
    /// The third cell of a GIC interrupt specifier: 1 for a rising edge, 4 for active-high level (Linux,
    /// `include/dt-bindings/interrupt-controller/irq.h`). KVM models neither falling edges nor active-low lines.
    #[must_use]
    pub const fn fdt_flag(self) -> u32 {
        match self {
            Self::Edge => 1,
            Self::Level => 4,
        }
    }
}

impl fmt::Display for TriggerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edge => "edge",
            Self::Level => "level",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdt_flags_are_those_of_the_binding() {
        assert_eq!(TriggerMode::Edge.fdt_flag(), 1);
        assert_eq!(TriggerMode::Level.fdt_flag(), 4);
    }
}
