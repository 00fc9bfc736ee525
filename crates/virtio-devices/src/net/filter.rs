// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which frames the guest wants to see (VIRTIO 1.3, sections 5.1.6.5.1 and 5.1.6.5.2).

use super::mac::MacAddress;

/// How many addresses of each kind are kept. A guest that wants more gets all frames of that kind, which a filter may always let through.
pub(crate) const TABLE_LIMIT: usize = 64;

const BROADCAST: [u8; 6] = [0xff; 6];

/// The receive mode and the address tables, as the driver has set them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReceiveFilter {
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) all_unicast: bool,
    pub(crate) no_multicast: bool,
    pub(crate) no_unicast: bool,
    pub(crate) no_broadcast: bool,
    pub(crate) unicast: AddressTable,
    pub(crate) multicast: AddressTable,
}

/// Addresses beside the card's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddressTable {
    /// These.
    Listed(Vec<[u8; 6]>),
    /// More than [`TABLE_LIMIT`]: all.
    Overflowed,
}

/// What a tap can be told: `TUNSETTXFILTER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TapFilter {
    /// Everything.
    Everything,
    /// Frames to these addresses.
    Only {
        /// Multicast frames whatever their address.
        all_multicast: bool,
        /// Unicast addresses come first: the kernel compares the first eight, and hashes the rest, which must be multicast then.
        addresses: Vec<[u8; 6]>,
    },
}

impl Default for ReceiveFilter {
    /// A device after reset lets everything through: a driver that knows nothing of filters must see its frames.
    fn default() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: AddressTable::Listed(Vec::new()),
            multicast: AddressTable::Listed(Vec::new()),
        }
    }
}

impl ReceiveFilter {
    /// The filter for the tap. It may let through what the guest has not asked for, never the reverse, and costs nothing a frame in
    /// userspace, vhost or not: the kernel applies it before a frame is queued.
    pub(crate) fn for_tap(&self, own: MacAddress) -> TapFilter {
        if self.promiscuous || (self.all_unicast && !self.no_unicast) {
            return TapFilter::Everything;
        }
        let mut addresses = Vec::new();
        if !self.no_unicast {
            addresses.push(own.bytes());
            match &self.unicast {
                AddressTable::Listed(listed) => addresses.extend(listed),
                AddressTable::Overflowed => return TapFilter::Everything,
            }
        }
        if !self.no_broadcast {
            addresses.push(BROADCAST);
        }
        let mut all_multicast = false;
        if !self.no_multicast {
            match &self.multicast {
                AddressTable::Listed(listed) => addresses.extend(listed),
                AddressTable::Overflowed => all_multicast = true,
            }
            all_multicast |= self.all_multicast;
        }
        if addresses.is_empty() {
            // An empty list means no filter to the kernel; nobody sends to this address.
            addresses.push([0; 6]);
        }
        TapFilter::Only { all_multicast, addresses }
    }
}

impl AddressTable {
    /// A table of `addresses`, six bytes each.
    pub(crate) fn new(addresses: &[u8]) -> Self {
        let (addresses, _) = addresses.as_chunks::<6>();
        if addresses.len() > TABLE_LIMIT { Self::Overflowed } else { Self::Listed(addresses.to_vec()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap()
    }

    fn quiet() -> ReceiveFilter {
        ReceiveFilter { promiscuous: false, ..ReceiveFilter::default() }
    }

    fn only(filter: &ReceiveFilter) -> (bool, Vec<[u8; 6]>) {
        match filter.for_tap(own()) {
            TapFilter::Only { all_multicast, addresses } => (all_multicast, addresses),
            TapFilter::Everything => panic!("no filter"),
        }
    }

    #[test]
    fn after_reset_everything_passes() {
        assert_eq!(ReceiveFilter::default().for_tap(own()), TapFilter::Everything);
    }

    #[test]
    fn a_quiet_card_hears_itself_and_broadcasts() {
        assert_eq!(only(&quiet()), (false, vec![own().bytes(), BROADCAST]));
    }

    #[test]
    fn tables_add_and_modes_take_away() {
        let one = [2, 0, 0, 0, 0, 9];
        let group = [1, 0, 0x5e, 0, 0, 1];
        let filter = ReceiveFilter {
            unicast: AddressTable::new(&one),
            multicast: AddressTable::new(&group),
            ..quiet()
        };
        assert_eq!(only(&filter), (false, vec![own().bytes(), one, BROADCAST, group]));
        assert_eq!(
            only(&ReceiveFilter { no_unicast: true, ..filter.clone() }),
            (false, vec![BROADCAST, group])
        );
        assert_eq!(
            only(&ReceiveFilter { no_broadcast: true, ..filter.clone() }).1,
            vec![own().bytes(), one, group]
        );
        assert_eq!(
            only(&ReceiveFilter { no_multicast: true, all_multicast: true, ..filter.clone() }),
            (false, vec![own().bytes(), one, BROADCAST])
        );
        assert!(only(&ReceiveFilter { all_multicast: true, ..filter.clone() }).0);
        assert_eq!(ReceiveFilter { all_unicast: true, ..filter }.for_tap(own()), TapFilter::Everything);
    }

    #[test]
    fn nothing_wanted_is_not_an_empty_list() {
        let filter = ReceiveFilter { no_unicast: true, no_broadcast: true, no_multicast: true, ..quiet() };
        assert_eq!(only(&filter), (false, vec![[0; 6]]));
    }

    #[test]
    fn more_addresses_than_are_kept_mean_all() {
        let many = vec![3; 6 * (TABLE_LIMIT + 1)];
        assert_eq!(AddressTable::new(&many), AddressTable::Overflowed);
        assert!(
            matches!(AddressTable::new(&many[6..]), AddressTable::Listed(listed) if listed.len() == TABLE_LIMIT)
        );
        assert_eq!(
            ReceiveFilter { unicast: AddressTable::Overflowed, ..quiet() }.for_tap(own()),
            TapFilter::Everything
        );
        assert!(only(&ReceiveFilter { multicast: AddressTable::Overflowed, ..quiet() }).0);
    }
}
