// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taps that can be had, and those that cannot, in a network of the test's own.

use std::os::fd::OwnedFd;

use super::super::features;
use super::super::tap::Found;
use super::taps::{in_own_network, ip, open_when_free, persistent};
use crate::sys::tap::{self as sys, host};
use crate::{Tap, TapError};

#[test]
fn taps_that_cannot_be_had_are_said_to_be_so() {
    in_own_network(|| {
        let error = Tap::open("dbt7", 1).unwrap_err();
        assert!(matches!(&error, TapError::Missing { name } if name == "dbt7"), "{error}");
        assert!(error.to_string().contains("ip tuntap add"), "{error}");

        let tap = Tap::create("dbt7", 1).unwrap();
        assert!(matches!(Tap::open("dbt7", 1), Err(TapError::Busy { .. })));
        assert!(matches!(Tap::open("dbt7", 2), Err(TapError::SingleQueue { queues: 2, .. })));
        assert!(matches!(Tap::create("dbt7", 1), Err(TapError::Exists { .. })));
        drop(tap);
        // It goes with its descriptor.
        drop(open_when_free("dbt7", 1));
        assert!(matches!(Tap::open("dbt7", 1), Err(TapError::Missing { .. })));

        assert!(matches!(Tap::open("lo", 1), Err(TapError::NotATap { .. })));
        assert!(matches!(Tap::open("lo", 2), Err(TapError::NotATap { .. })));

        persistent("dbt8", 1);
        let tap = open_when_free("dbt8", 1).unwrap();
        assert_eq!((tap.name(), tap.queue_pairs(), tap.mtu()), ("dbt8", 1, Some(1500)));
        drop(tap);
        drop(open_when_free("dbt8", 1).expect("a persistent tap can be opened again"));

        persistent("dbt9", 2);
        ip("link set dbt9 up mtu 9000");
        let tap = open_when_free("dbt9", 4).unwrap();
        assert_eq!((tap.queue_pairs(), tap.mtu()), (4, Some(9000)));
        for queues in [1, 2] {
            assert!(matches!(Tap::open("dbt9", queues), Err(TapError::Busy { .. })));
        }
        drop(tap);
        drop(open_when_free("dbt9", 1).expect("one queue of a tap for many"));
    });
}

#[test]
fn an_interface_that_goes_while_it_is_opened_is_not_made_anew() {
    in_own_network(|| {
        persistent("dbt13", 1);
        let found = Found::by_name("dbt13").unwrap();
        ip("link del dbt13");
        assert!(Tap::open_found("dbt13", 1, found).unwrap().is_none());
        assert!(matches!(open_when_free("dbt13", 1), Err(TapError::Missing { .. })), "nor is it left behind");
    });
}

/// Those of a macvtap have a header size each. Those of two taps will do to see it.
#[test]
fn each_descriptor_is_told_of_the_header() {
    in_own_network(|| {
        let [one, other] = ["dbt14", "dbt15"].map(|name| Tap::create(name, 1).unwrap());
        let file = |tap: &Tap| tap.queue(0).unwrap().try_clone().unwrap();
        for tap in [&one, &other] {
            sys::set_header_size(file(tap), 10).unwrap();
        }
        let tap = Tap::new("dbt14".to_owned(), vec![file(&one), file(&other)]).unwrap();
        for queue in 0..2 {
            assert_eq!(host::header_size(tap.queue(queue).unwrap()).unwrap(), 12);
        }
    });
}

#[test]
fn descriptors_that_are_of_no_tap_or_of_another_kind_are_refused() {
    in_own_network(|| {
        let open = |name: &str, flags: libc::c_int| -> OwnedFd {
            let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
            sys::set_interface(&file, name, flags.try_into().unwrap()).unwrap();
            file.into()
        };
        let all = libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let table = [
            (vec![("dbt16", libc::IFF_TUN | all)], 0, "IP packets"),
            (vec![("dbt17", libc::IFF_TAP | libc::IFF_NO_PI)], 0, "IFF_VNET_HDR"),
            (vec![("dbt18", libc::IFF_TAP | libc::IFF_VNET_HDR)], 0, "IFF_NO_PI"),
            (vec![("dbt19", libc::IFF_TAP | all), ("dbt20", libc::IFF_TAP | all)], 1, "another interface"),
        ];
        for (kinds, bad, why) in table {
            let fds = kinds.iter().map(|&(name, flags)| open(name, flags)).collect();
            match Tap::from_fds(fds) {
                Err(TapError::Descriptor { index, problem }) => {
                    assert!(index == bad && problem.contains(why), "{index} {problem}");
                }
                other => panic!("{why}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_tap_that_somebody_else_has_opened_will_do() {
    in_own_network(|| {
        let given = Tap::create("dbt10", 1).unwrap();
        let fd: OwnedFd = given.queue(0).unwrap().try_clone().unwrap().into();
        drop(given);
        let tap = Tap::from_fds(vec![fd]).unwrap();
        assert_eq!((tap.name(), tap.queue_pairs()), ("dbt10", 1));
        assert_ne!(tap.offloads().features() & features::CSUM, 0);
    });
}
