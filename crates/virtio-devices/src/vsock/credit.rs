// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much either end of a connection may send (VIRTIO 1.3, section 5.10.6.3). Numbers only.

use std::num::Wrapping;

/// How many bytes of the guest's are kept for a host program that does not read: what Linux keeps, too
/// (`VSOCK_DEFAULT_BUFFER_SIZE`, Linux 6.12, `net/vmw_vsock/af_vsock.c`).
pub(crate) const BUFFER_SIZE: u32 = 256 << 10;

/// Both directions of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Credit {
    /// Bytes from the guest, ever, and how many of them went on to the host program.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// What the guest was last told of the latter.
    told: Wrapping<u32>,
    /// Bytes to the guest, ever, and what it has last said that it has passed on of them, and has room for.
    sent: Wrapping<u32>,
    peer_forwarded: Wrapping<u32>,
    peer_size: u32,
}

impl Credit {
    /// How many bytes wait on this side.
    pub(crate) fn waiting(&self) -> u32 {
        (self.received - self.forwarded).0
    }

    /// The guest has sent so many. Whether it was allowed to.
    #[must_use]
    pub(crate) fn receive(&mut self, length: u32) -> bool {
        let fits = self.waiting().checked_add(length).is_some_and(|waiting| waiting <= BUFFER_SIZE);
        if fits {
            self.received += length;
        }
        fits
    }

    /// So many of the waiting bytes went on.
    pub(crate) fn forward(&mut self, length: u32) {
        self.forwarded += length.min(self.waiting());
    }

    /// Whether the guest should be told that there is room again, even if there is nothing else to say: when it sees less than half of it.
    pub(crate) fn worth_telling(&self) -> bool {
        (self.received - self.told).0 > BUFFER_SIZE / 2 && self.forwarded != self.told
    }

    /// What is told in each packet: the bytes forwarded. The size never changes.
    pub(crate) fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.forwarded.0
    }

    /// The guest has told the same of its side. Whether that is news.
    pub(crate) fn hear(&mut self, size: u32, forwarded: u32) -> bool {
        let before = (self.peer_size, self.peer_forwarded);
        self.peer_size = size;
        self.peer_forwarded = Wrapping(forwarded);
        before != (self.peer_size, self.peer_forwarded)
    }

    /// How many bytes the guest has room for. None if what it says makes no sense: that it has passed on more than it was sent.
    pub(crate) fn room(&self) -> u32 {
        self.peer_size.saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// So many were sent to the guest.
    pub(crate) fn send(&mut self, length: u32) {
        self.sent += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_guest_that_sends_more_than_it_may_is_found_out() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUFFER_SIZE));
        assert!(!credit.receive(1));
        credit.forward(10);
        assert!(!credit.receive(11));
        assert!(credit.receive(10));
        assert!(!credit.receive(u32::MAX));
        assert_eq!(credit.waiting(), BUFFER_SIZE);
    }

    #[test]
    fn a_guest_that_lies_about_its_room_gets_nothing() {
        let mut credit = Credit::default();
        credit.hear(1000, 5);
        assert_eq!(credit.room(), 0, "it cannot have passed on what it never got");
        credit.hear(1000, 0);
        credit.send(600);
        assert_eq!(credit.room(), 400);
        credit.hear(500, 0);
        assert_eq!(credit.room(), 0, "a buffer may shrink");
        credit.hear(1000, 600);
        assert_eq!(credit.room(), 1000);
    }

    #[test]
    fn a_guest_that_sees_less_than_half_of_the_room_is_told_once_there_is_more() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUFFER_SIZE / 2));
        credit.forward(BUFFER_SIZE / 2);
        assert!(!credit.worth_telling(), "it sees half");
        assert!(credit.receive(1));
        assert!(credit.worth_telling());
        assert_eq!(credit.tell(), BUFFER_SIZE / 2);
        credit.forward(1);
        assert!(!credit.worth_telling(), "it was told of most");
        assert_eq!(credit.tell(), BUFFER_SIZE / 2 + 1);
        assert!(credit.receive(BUFFER_SIZE));
        assert!(!credit.worth_telling(), "there is no more room than it knows of");
        credit.forward(1);
        assert!(credit.worth_telling());
    }

    #[test]
    fn only_another_size_or_count_is_news() {
        let mut credit = Credit::default();
        assert!(credit.hear(1000, 0));
        assert!(!credit.hear(1000, 0));
        assert!(credit.hear(1001, 0));
        assert!(credit.hear(1001, 1));
        assert!(!credit.hear(1001, 1));
    }

    proptest! {
        /// Two honest ends that tell each other now and then: neither sends too much, and neither waits for ever.
        #[test]
        fn honest_ends_never_get_stuck(
            start: u32,
            steps in prop::collection::vec((0..4_u8, 1..100_000_u32), 1..300),
        ) {
            let at = Wrapping(start);
            let mut host = Credit { received: at, forwarded: at, told: at, ..Credit::default() };
            // The guest as the specification has it.
            let (mut guest_sent, mut guest_heard) = (at, at);
            for (step, length) in steps {
                let room = BUFFER_SIZE - (guest_sent - guest_heard).0;
                match step {
                    0 | 1 => {
                        let length = length.min(room);
                        guest_sent += length;
                        prop_assert!(host.receive(length));
                    }
                    2 => host.forward(length),
                    _ => guest_heard = Wrapping(host.tell()),
                }
                prop_assert!(host.waiting() <= BUFFER_SIZE);
            }
            host.forward(u32::MAX);
            prop_assert_eq!(host.waiting(), 0);
            if host.worth_telling() {
                guest_heard = Wrapping(host.tell());
            }
            prop_assert!(BUFFER_SIZE - (guest_sent - guest_heard).0 >= BUFFER_SIZE / 2);
        }
    }
}
