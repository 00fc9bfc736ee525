// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The capabilities of a device, found by following its lists (PCI Express base specification 6.0, sections 7.5.1.1.11 and 7.6.3).

/// Capability IDs.
pub(crate) mod id {
    pub(crate) const POWER_MANAGEMENT: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
    pub(crate) const ADVANCED_FEATURES: u8 = 0x13;

    /// Extended: alternative routing-ID interpretation, which counts the functions of the device's own slot.
    pub(crate) const ARI: u16 = 0x0e;
    /// Extended: virtual functions, which the host makes and a guest cannot.
    pub(crate) const SRIOV: u16 = 0x10;
    /// Extended: BARs of several sizes; the host has chosen.
    pub(crate) const RESIZABLE_BAR: u16 = 0x15;
    /// Extended: the same for virtual functions.
    pub(crate) const VF_RESIZABLE_BAR: u16 = 0x24;
}

const STATUS: usize = 6;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CAPABILITIES: usize = 0x34;
const FIRST: usize = 0x40;
const STANDARD: usize = 0x100;

/// Extended capabilities that make no sense in the guest.
const HIDDEN: [u16; 4] = [id::ARI, id::SRIOV, id::RESIZABLE_BAR, id::VF_RESIZABLE_BAR];

/// The standard capabilities: (ID, where it begins).
pub(crate) fn standard(config: &[u8]) -> Vec<(u8, u16)> {
    let byte = |at: usize| config.get(at).copied().unwrap_or(0);
    let mut found: Vec<(u8, u16)> = Vec::new();
    if byte(STATUS) & STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = usize::from(byte(CAPABILITIES) & !3);
    // A list that meets itself again ends there.
    while (FIRST..STANDARD).contains(&at) && found.iter().all(|&(_, seen)| usize::from(seen) != at) {
        #[expect(clippy::cast_possible_truncation, reason = "below 0x100")]
        found.push((byte(at), at as u16));
        at = usize::from(byte(at + 1) & !3);
    }
    found
}

/// The headers of extended capabilities that the guest sees otherwise than the device has them: (where, header). A hidden one is left out of the list;
/// the first one cannot be, and becomes one that nobody knows.
pub(crate) fn rewritten(config: &[u8]) -> Vec<(u16, u32)> {
    let header = |at: usize| {
        config.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
    };
    let next = |header: u32| (header >> 20) as usize & 0xffc;
    #[expect(clippy::cast_possible_truncation, reason = "the ID has 16 bits")]
    let hidden = |header: u32| HIDDEN.contains(&(header as u16));

    let mut list: Vec<(usize, u32)> = Vec::new();
    let mut at = STANDARD;
    while at >= STANDARD && at < config.len() && header(at) != 0 && list.iter().all(|&(seen, _)| seen != at) {
        list.push((at, header(at)));
        at = next(header(at));
    }
    let shown: Vec<_> = list.iter().filter(|(at, header)| *at == STANDARD || !hidden(*header)).collect();
    let mut changed = Vec::new();
    for (i, (at, header)) in shown.iter().enumerate() {
        let follower = shown.get(i + 1).map_or(0, |(at, _)| *at);
        // What is no capability's ID (0xffff is reserved for this), version 0.
        let low = if hidden(*header) { 0xffff } else { header & 0x000f_ffff };
        let new = low | u32::try_from(follower).unwrap_or(0) << 20;
        if new != *header {
            changed.push((u16::try_from(*at).unwrap_or(0), new));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(size: usize, bytes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut config = vec![0; size];
        for (at, values) in bytes {
            config[*at..*at + values.len()].copy_from_slice(values);
        }
        config
    }

    #[test]
    fn the_standard_list_is_followed_to_its_end_and_not_in_circles() {
        let start: (usize, &[u8]) = (6, &[0x10]);
        let list = config(
            256,
            &[start, (0x34, &[0x40]), (0x40, &[0x11, 0x80]), (0x80, &[0x01, 0x63]), (0x60, &[0x10, 0])],
        );
        assert_eq!(standard(&list), [(0x11, 0x40), (0x01, 0x80), (0x10, 0x60)]);
        let circle = config(256, &[start, (0x34, &[0x40]), (0x40, &[5, 0x50]), (0x50, &[9, 0x40])]);
        assert_eq!(standard(&circle), [(5, 0x40), (9, 0x50)]);
        assert_eq!(standard(&config(256, &[(0x34, &[0x40]), (0x40, &[5, 0])])), [], "without the status bit");
        assert_eq!(standard(&config(256, &[start, (0x34, &[0x10])])), [], "into the header");
        assert_eq!(standard(&[]), []);
    }

    #[test]
    fn hidden_capabilities_are_left_out_of_the_extended_list() {
        let header = |id: u32, next: u32| (id | 1 << 16 | next << 20).to_le_bytes();
        let aer_ari_sriov_dsn = config(
            4096,
            &[
                (0x100, &header(1, 0x150)),
                (0x150, &header(0xe, 0x160)),
                (0x160, &header(0x10, 0x1a0)),
                (0x1a0, &header(3, 0)),
            ],
        );
        assert_eq!(rewritten(&aer_ari_sriov_dsn), [(0x100, 1 | 1 << 16 | 0x1a0 << 20)]);
        let ari_first = config(4096, &[(0x100, &header(0xe, 0x160)), (0x160, &header(3, 0))]);
        assert_eq!(rewritten(&ari_first), [(0x100, 0xffff | 0x160 << 20)]);
        let plain = config(4096, &[(0x100, &header(1, 0x150)), (0x150, &header(3, 0))]);
        assert_eq!(rewritten(&plain), []);
        let circle = config(4096, &[(0x100, &header(1, 0x150)), (0x150, &header(3, 0x100))]);
        assert_eq!(rewritten(&circle), [(0x150, 3 | 1 << 16)]);
        assert_eq!(rewritten(&config(256, &[])), []);
    }
}
