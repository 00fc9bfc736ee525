// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

/// Bytes that `KVM_SET_GSI_ROUTING` copies for each entry (`struct kvm_irq_routing_entry`, Linux 6.12, `include/uapi/linux/kvm.h`).
const ENTRY_BYTES: u64 = 48;
/// Bytes that it copies before the entries (`struct kvm_irq_routing`).
const HEADER_BYTES: u64 = 8;

/// What a router has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tables that the kernel has taken.
    pub commits: u64,
    /// Tables that the kernel has refused.
    pub failures: u64,
    /// Commits that changed nothing the kernel would notice, and did not call it.
    pub skipped: u64,
    /// Commits refused before the kernel saw them.
    pub refused: u64,
    /// Entries handed to the kernel, over all tables it took or refused.
    pub entries_copied: u64,
}

impl Counters {
    /// Bytes handed to the kernel.
    #[must_use]
    pub const fn bytes_copied(&self) -> u64 {
        self.entries_copied * ENTRY_BYTES + (self.commits + self.failures) * HEADER_BYTES
    }
}

/// Where the GSIs of a VM are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Each GSI lies below this, and the table has at most as many entries.
    pub limit: u32,
    /// Owned by a handle.
    pub owned: usize,
    /// Free to be allocated at once.
    pub free: usize,
    /// In a reserved range and not claimed.
    pub reserved: usize,
    /// Given up by their owners, with a route that the next commit takes out; then they are free.
    pub withdrawn: usize,
    /// Promised to budgets and not yet taken. These are among the free and withdrawn ones.
    pub promised: usize,
    /// Table entries spoken for: those that stay, and one for each GSI that has an owner and no route yet.
    pub entries: usize,
}
