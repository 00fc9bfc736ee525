// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver says on the control queue (VIRTIO 1.3, section 5.1.6.5), and what it is answered. No queue and no tap in it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC,
};

use super::features::{
    CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, GUEST_OFFLOADS, MQ, TapOffloads,
};
use super::filter::{AddressTable, ReceiveFilter};
use super::mac::MacAddress;

/// The longest command that is read: a class, a command, and two tables of addresses that are far longer than what is kept of them.
pub(crate) const LONGEST: usize = 64 << 10;

/// The answer to a command (`VIRTIO_NET_OK` and `VIRTIO_NET_ERR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ack {
    Ok = 0,
    Err = 1,
}

/// What a command asks for, once it has been found to be one that the driver may give.
#[derive(Debug, Clone)]
enum Command {
    Mode(fn(&mut ReceiveFilter) -> &mut bool, bool),
    Tables(AddressTable, AddressTable),
    Address(MacAddress),
    QueuePairs(u16),
    Offloads(u64),
}

/// Who carries out what the driver asks for: the tap.
pub(crate) trait Carrier {
    /// Only such frames from now on.
    fn filter(&mut self, filter: &ReceiveFilter, own: MacAddress) -> bool;
    /// Frames on the first so many queue pairs from now on.
    fn queue_pairs(&mut self, active: u16) -> bool;
    /// Such unfinished packets from now on.
    fn offloads(&mut self, offloads: TapOffloads) -> bool;
}

/// What the driver has set on the control queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlState {
    features: u64,
    max_pairs: u16,
    pub(crate) mac: MacAddress,
    pub(crate) filter: ReceiveFilter,
    pub(crate) pairs: u16,
}

impl ControlState {
    /// As it is at DRIVER_OK, with the features that were negotiated.
    pub(crate) fn new(features: u64, max_pairs: u16, mac: MacAddress) -> Self {
        Self { features, max_pairs, mac, filter: ReceiveFilter::default(), pairs: 1 }
    }

    /// Carries out one command: all that the driver has made readable. What it gets as an answer. A command that is not carried out changes
    /// nothing.
    pub(crate) fn execute(&mut self, command: &[u8], carrier: &mut impl Carrier) -> Ack {
        let done = match self.parse(command) {
            None => false,
            Some(Command::Mode(field, on)) => {
                let mut filter = self.filter.clone();
                *field(&mut filter) = on;
                self.set_filter(filter, self.mac, carrier)
            }
            Some(Command::Tables(unicast, multicast)) => {
                let filter = ReceiveFilter { unicast, multicast, ..self.filter.clone() };
                self.set_filter(filter, self.mac, carrier)
            }
            Some(Command::Address(mac)) => self.set_filter(self.filter.clone(), mac, carrier),
            Some(Command::QueuePairs(pairs)) => {
                let done = carrier.queue_pairs(pairs);
                if done {
                    self.pairs = pairs;
                }
                done
            }
            Some(Command::Offloads(offloads)) => carrier.offloads(TapOffloads::from_guest(offloads)),
        };
        if done { Ack::Ok } else { Ack::Err }
    }

    fn set_filter(&mut self, filter: ReceiveFilter, mac: MacAddress, carrier: &mut impl Carrier) -> bool {
        let done = carrier.filter(&filter, mac);
        if done {
            self.filter = filter;
            self.mac = mac;
        }
        done
    }

    /// What the bytes mean, if they mean something that the negotiated features allow.
    fn parse(&self, bytes: &[u8]) -> Option<Command> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        let (class, command) = (u32::from(class), u32::from(command));
        let negotiated = |feature| (self.features & feature == feature).then_some(());
        match class {
            VIRTIO_NET_CTRL_RX => {
                let (field, feature): (fn(&mut ReceiveFilter) -> &mut bool, u64) = match command {
                    VIRTIO_NET_CTRL_RX_PROMISC => (|filter| &mut filter.promiscuous, CTRL_RX),
                    VIRTIO_NET_CTRL_RX_ALLMULTI => (|filter| &mut filter.all_multicast, CTRL_RX),
                    VIRTIO_NET_CTRL_RX_ALLUNI => (|filter| &mut filter.all_unicast, CTRL_RX_EXTRA),
                    VIRTIO_NET_CTRL_RX_NOMULTI => (|filter| &mut filter.no_multicast, CTRL_RX_EXTRA),
                    VIRTIO_NET_CTRL_RX_NOUNI => (|filter| &mut filter.no_unicast, CTRL_RX_EXTRA),
                    VIRTIO_NET_CTRL_RX_NOBCAST => (|filter| &mut filter.no_broadcast, CTRL_RX_EXTRA),
                    _ => return None,
                };
                negotiated(feature)?;
                match data {
                    [on @ (0 | 1)] => Some(Command::Mode(field, *on == 1)),
                    _ => None,
                }
            }
            VIRTIO_NET_CTRL_MAC => match command {
                VIRTIO_NET_CTRL_MAC_TABLE_SET => {
                    negotiated(CTRL_RX)?;
                    let (unicast, rest) = table(data)?;
                    let (multicast, rest) = table(rest)?;
                    rest.is_empty().then_some(Command::Tables(unicast, multicast))
                }
                VIRTIO_NET_CTRL_MAC_ADDR_SET => {
                    negotiated(CTRL_MAC_ADDR)?;
                    MacAddress::new(data.try_into().ok()?).ok().map(Command::Address)
                }
                _ => None,
            },
            VIRTIO_NET_CTRL_MQ if command == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET => {
                negotiated(MQ)?;
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                (1..=self.max_pairs).contains(&pairs).then_some(Command::QueuePairs(pairs))
            }
            VIRTIO_NET_CTRL_GUEST_OFFLOADS if command == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET => {
                negotiated(CTRL_GUEST_OFFLOADS)?;
                let offloads = u64::from_le_bytes(data.try_into().ok()?);
                (offloads & !(self.features & GUEST_OFFLOADS) == 0).then_some(Command::Offloads(offloads))
            }
            _ => None,
        }
    }
}

/// A `struct virtio_net_ctrl_mac`: a count and as many addresses; and what follows it.
fn table(data: &[u8]) -> Option<(AddressTable, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (addresses, rest) = rest.split_at_checked(bytes)?;
    Some((AddressTable::new(addresses), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::features::{GUEST_CSUM, GUEST_TSO4};
    use super::super::filter::TABLE_LIMIT;
    use super::*;

    /// Remembers what it was asked for, and does it unless told not to.
    #[derive(Default)]
    struct Fake {
        refuse: bool,
        filters: Vec<(ReceiveFilter, MacAddress)>,
        pairs: Vec<u16>,
        offloads: Vec<TapOffloads>,
    }

    impl Carrier for Fake {
        fn filter(&mut self, filter: &ReceiveFilter, own: MacAddress) -> bool {
            self.filters.push((filter.clone(), own));
            !self.refuse
        }
        fn queue_pairs(&mut self, active: u16) -> bool {
            self.pairs.push(active);
            !self.refuse
        }
        fn offloads(&mut self, offloads: TapOffloads) -> bool {
            self.offloads.push(offloads);
            !self.refuse
        }
    }

    const ALL: u64 =
        CTRL_RX | CTRL_RX_EXTRA | CTRL_MAC_ADDR | MQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4;

    fn mac(last: u8) -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, last]).unwrap()
    }

    fn state(features: u64) -> ControlState {
        ControlState::new(features, 4, mac(1))
    }

    #[test]
    fn each_command_does_its_own_thing() {
        let mut state = state(ALL);
        let mut tap = Fake::default();
        let mut ok = |bytes: &[u8]| {
            assert_eq!(state.execute(bytes, &mut tap), Ack::Ok, "{bytes:?}");
            state.clone()
        };
        assert!(!ok(&[0, 0, 0]).filter.promiscuous);
        assert!(ok(&[0, 1, 1]).filter.all_multicast);
        assert!(ok(&[0, 2, 1]).filter.all_unicast);
        assert!(ok(&[0, 3, 1]).filter.no_multicast);
        assert!(ok(&[0, 4, 1]).filter.no_unicast);
        assert!(ok(&[0, 5, 1]).filter.no_broadcast);
        let one = [2, 0, 0, 0, 0, 7];
        let group = [1, 0, 0x5e, 0, 0, 1];
        let after = ok(&[&[1, 0, 1, 0, 0, 0][..], &one, &[1, 0, 0, 0], &group].concat());
        assert_eq!(after.filter.unicast, AddressTable::Listed(vec![one]));
        assert_eq!(after.filter.multicast, AddressTable::Listed(vec![group]));
        assert_eq!(ok(&[1, 1, 2, 0, 0, 0, 0, 9]).mac, mac(9));
        assert_eq!(ok(&[4, 0, 4, 0]).pairs, 4);
        ok(&[&[5, 0][..], &(GUEST_CSUM | GUEST_TSO4).to_le_bytes()].concat());
        assert_eq!(tap.pairs, [4]);
        assert_eq!(tap.offloads, [TapOffloads::from_guest(GUEST_CSUM | GUEST_TSO4)]);
        assert_eq!(tap.filters.len(), 8);
        assert_eq!(tap.filters.last().unwrap().1, mac(9));
    }

    #[test]
    fn what_is_no_command_changes_nothing() {
        let wrong: [&[u8]; 22] = [
            &[],
            &[0],
            &[0, 0],
            &[0, 0, 2],
            &[0, 0, 1, 0],
            &[0, 6, 1],
            &[1, 0],
            &[1, 0, 0, 0, 0, 0],
            &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 1, 2, 0, 0, 0, 0],
            &[1, 1, 1, 0, 0, 0, 0, 0],
            &[1, 2],
            &[2, 0, 1, 0],
            &[4, 0, 0, 0],
            &[4, 0, 5, 0],
            &[4, 1, 1, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0x80],
            // VIRTIO_NET_F_GUEST_TSO6, which was not negotiated.
            &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            &[5, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[99, 0, 0],
        ];
        for bytes in wrong {
            let mut state = state(ALL);
            let mut tap = Fake::default();
            assert_eq!(state.execute(bytes, &mut tap), Ack::Err, "{bytes:?}");
            assert_eq!(state, super::tests::state(ALL), "{bytes:?}");
            assert!(tap.filters.is_empty() && tap.pairs.is_empty() && tap.offloads.is_empty());
        }
    }

    #[test]
    fn commands_of_features_that_were_not_negotiated_are_refused() {
        let commands: [(&[u8], u64); 6] = [
            (&[0, 0, 1], CTRL_RX),
            (&[0, 2, 1], CTRL_RX_EXTRA),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], CTRL_RX),
            (&[1, 1, 2, 0, 0, 0, 0, 9], CTRL_MAC_ADDR),
            (&[4, 0, 2, 0], MQ),
            (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], CTRL_GUEST_OFFLOADS),
        ];
        for (bytes, feature) in commands {
            assert_eq!(state(ALL & !feature).execute(bytes, &mut Fake::default()), Ack::Err, "{bytes:?}");
            assert_eq!(state(feature).execute(bytes, &mut Fake::default()), Ack::Ok, "{bytes:?}");
        }
    }

    #[test]
    fn what_the_tap_refuses_is_not_so() {
        let mut tap = Fake { refuse: true, ..Fake::default() };
        let mut refused = state(ALL);
        for bytes in [&[0, 0, 0][..], &[1, 1, 2, 0, 0, 0, 0, 9], &[4, 0, 2, 0]] {
            assert_eq!(refused.execute(bytes, &mut tap), Ack::Err);
        }
        assert_eq!(refused, state(ALL));
    }

    proptest! {
        #[test]
        fn any_bytes_leave_a_state_that_holds(
            commands in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..8),
            classes in prop::collection::vec((0_u8..7, 0_u8..7), 8),
            features: u64,
        ) {
            let mut state = state(features);
            let mut tap = Fake::default();
            for (mut bytes, (class, command)) in commands.into_iter().zip(classes) {
                for (byte, with) in bytes.iter_mut().zip([class, command]) {
                    *byte = with;
                }
                let before = state.clone();
                let ack = state.execute(&bytes, &mut tap);
                prop_assert!(ack == Ack::Ok || state == before);
                prop_assert!((1..=4).contains(&state.pairs));
                prop_assert!(MacAddress::new(state.mac.bytes()).is_ok());
                for table in [&state.filter.unicast, &state.filter.multicast] {
                    if let AddressTable::Listed(listed) = table {
                        prop_assert!(listed.len() <= TABLE_LIMIT);
                    }
                }
            }
        }
    }
}
