// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vector group as what a PCI function's MSI or MSI-X capability drives.

use pci::{VectorChange, VectorSink};

use crate::VectorGroup;

/// What goes wrong stays in the vectors' states ([`VectorState::obstacle`](crate::VectorState::obstacle)) and is tried again at the next change.
impl VectorSink for VectorGroup {
    fn apply(&self, changes: &[VectorChange]) {
        // The guest's wishes are recorded whatever happens, and a failure is kept by the vector it hit. A vector that the group does not have is a
        // capability with more of them than the group was made for: nobody hears of it, and it must not take the others along.
        let _ = self.update(|group| {
            for &change in changes {
                match change {
                    VectorChange::Reset => {
                        group.reset();
                        group.set_enabled(false);
                    }
                    VectorChange::Program(index, message) => drop(group.program(index, message)),
                    VectorChange::Mask(index, true) => drop(group.mask(index)),
                    VectorChange::Mask(index, false) => drop(group.unmask(index)),
                    VectorChange::FunctionMask(masked) => group.set_function_mask(masked),
                    VectorChange::Enable(enabled) => group.set_enabled(enabled),
                    VectorChange::Allowed(count) => group.set_allowed(count),
                }
            }
            Ok(())
        });
    }

    fn pending_word(&self, word: usize) -> u64 {
        self.pending_word(word).unwrap_or(0)
    }
}
