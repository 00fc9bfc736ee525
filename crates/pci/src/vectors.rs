// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an MSI or MSI-X capability drives: whoever turns a function's vectors into interrupts.

use irq_types::MsiMessage;

/// One thing that a guest's write to a capability or a table changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VectorChange {
    /// All is as after a reset of the function: the capability is disabled, the function is not masked, all vectors are masked, not
    /// programmed, not pending, and allowed.
    Reset,
    /// The message of a vector.
    Program(usize, MsiMessage),
    /// The vector's own mask bit.
    Mask(usize, bool),
    /// The mask of the whole function (MSI-X).
    FunctionMask(bool),
    /// The capability's enable bit.
    Enable(bool),
    /// How many vectors the guest allows (MSI's Multiple Message Enable). Those beyond must not reach it.
    Allowed(usize),
}

/// The receiving end of one capability, MSI or MSI-X, of a function. A function with both has two.
///
/// It is told [`Reset`](VectorChange::Reset) when it is connected, and starts from there.
///
/// With the feature `pci` of the crate irqfd, its `VectorGroup` is one.
pub trait VectorSink: Send + Sync {
    /// All that one write of the guest's changes, in order. Guests' writes cannot fail: what goes wrong is kept, and said, by the sink.
    ///
    /// Writes from several vCPUs arrive one after another, in the order in which the capability took them: it is locked meanwhile, and must not be
    /// called from within.
    fn apply(&self, changes: &[VectorChange]);

    /// 64 pending bits from vector `64 * word` on: a quadword of the pending bit array.
    fn pending_word(&self, word: usize) -> u64;
}
