// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The card on a tap, in a network of the test's own.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;

use super::super::features;
use super::super::tap::Found;
use crate::sys::tap::{self as sys, host};
use crate::testing::{
    BREAKAGES, Driver, DriverQueue, EVENT_IDX, assert_descriptors_below, no_thread_named, open_descriptors,
    readable, writable,
};
use crate::{MacAddress, Net, NetCounters, NetError, NetOptions, Tap, TapError, Vhost, VirtioDevice};

const DATA: u64 = Driver::DATA;

/// Runs `test` on a thread that has a network of its own, or says why not.
fn in_own_network(test: fn()) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let body = move || {
        if !std::path::Path::new("/dev/net/tun").exists() {
            println!("SKIP {name}: there is no /dev/net/tun");
        } else if let Err(e) = host::new_network() {
            println!("SKIP {name}: no network of its own: {e}");
        } else {
            test();
        }
    };
    std::thread::Builder::new().name("net-test".into()).spawn(body).unwrap().join().unwrap();
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn mac() -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 0, 2]).unwrap()
}

fn options() -> NetOptions {
    with(Vhost::Off)
}

fn with(vhost: Vhost) -> NetOptions {
    NetOptions { mac: Some(mac()), vhost, ..NetOptions::default() }
}

/// In userspace, and in the kernel if the host can.
fn ways() -> Vec<Vhost> {
    if std::path::Path::new("/dev/vhost-net").exists() {
        vec![Vhost::Off, Vhost::On]
    } else {
        println!("without vhost: there is no /dev/vhost-net");
        vec![Vhost::Off]
    }
}

/// The host knows the guest, behind the tap `name`, by the address `mac`.
fn neighbour(name: &str, mac: MacAddress) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    host::set_neighbour(socket, name, Ipv4Addr::new(192, 0, 2, 2), mac.bytes()).unwrap();
}

/// Makes a tap that stays when it is not open, as `ip tuntap add` does.
fn persistent(name: &str, queues: usize) {
    let tap = Tap::create(name, queues).unwrap();
    host::set_persistent(tap.queue(0).unwrap(), true).unwrap();
}

/// What opening gives as soon as nobody has the interface: a program that another test is just starting may have a copy of a descriptor
/// that is closed here, until it runs.
fn open_when_free(name: &str, queues: usize) -> Result<Tap, TapError> {
    loop {
        match Tap::open(name, queues) {
            Err(TapError::Busy { .. }) => std::thread::yield_now(),
            other => return other,
        }
    }
}

/// A tap that is up as 192.0.2.1, and knows the guest as 192.0.2.2.
fn configured(name: &str, queues: usize) -> Tap {
    let tap = Tap::create(name, queues).unwrap();
    ip(&format!("addr add 192.0.2.1/24 dev {name}"));
    tap.set_up().unwrap();
    neighbour(name, mac());
    tap
}

fn start(net: &mut Net, more: u64) -> Driver {
    let mut driver = Driver::start(net, more, 4 << 20).unwrap();
    for i in 0..64 {
        driver.queues[0].add(&[writable(DATA + i * 2048, 2048)]);
    }
    driver
}

/// Makes a receive buffer available again.
fn recycle(queue: &mut DriverQueue, head: u16) {
    queue.add(&[writable(queue.address(head), 2048)]);
}

/// The ones' complement sum of the Internet protocols.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A UDP datagram from the guest to 192.0.2.1:`port`, its checksum left to the host.
fn datagram(host: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_length.to_be_bytes());

    // VIRTIO_NET_HDR_F_NEEDS_CSUM, from byte 34 on, into byte 6 from there.
    let mut frame = vec![1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    frame.extend(host);
    frame.extend(mac().bytes());
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(4000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(udp_length.to_be_bytes());
    frame.extend(sum(&pseudo).to_be_bytes());
    frame.extend(payload);
    frame
}

fn host_address(tap: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["link", "show", "dev", tap]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let address = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    address.parse::<MacAddress>().unwrap().bytes()
}

/// Waits for the frame that carries `payload` to the guest; others (of IPv6, mostly) are looked over.
fn wait_for(driver: &mut Driver, queue: usize, payload: &[u8]) {
    loop {
        let (head, written) = driver.queues[queue].wait_used();
        let address = driver.queues[queue].address(head);
        let frame = driver.read(address, written as usize);
        recycle(&mut driver.queues[queue], head);
        if frame.ends_with(payload) {
            assert_eq!(&frame[12..18], mac().bytes());
            return;
        }
    }
}

#[test]
fn datagrams_pass_both_ways() {
    in_own_network(|| {
        for (vhost, more) in ways().into_iter().flat_map(|vhost| [(vhost, 0), (vhost, EVENT_IDX)]) {
            let mut net = Net::new(configured("dbt0", 1), with(vhost)).unwrap();
            assert_eq!(net.uses_vhost(), vhost == Vhost::On);
            let host = host_address("dbt0");
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            let mut driver = start(&mut net, more);
            for round in 0..200_u16 {
                let payload = format!("to the guest {round}");
                socket.send_to(payload.as_bytes(), "192.0.2.2:4000").unwrap();
                wait_for(&mut driver, 0, payload.as_bytes());
                let payload = format!("to the host {round}").into_bytes();
                let frame = datagram(host, socket.local_addr().unwrap().port(), &payload);
                driver.write(DATA + 0x20_0000, &frame);
                driver.queues[1].add(&[readable(DATA + 0x20_0000, u32::try_from(frame.len()).unwrap())]);
                let mut got = [0; 100];
                let (length, from) = socket.recv_from(&mut got).unwrap();
                assert_eq!((&got[..length], from.to_string().as_str()), (&payload[..], "192.0.2.2:4000"));
                driver.queues[1].wait_used();
            }
            // Those came one at a time, and these do not.
            for round in 0..30 {
                socket.send_to(format!("at once {round}.").as_bytes(), "192.0.2.2:4000").unwrap();
            }
            for round in 0..30 {
                wait_for(&mut driver, 0, format!("at once {round}.").as_bytes());
            }
            assert_eq!(driver.transport.needs_reset(), None);
            let counters = net.handle().counters();
            if vhost == Vhost::On {
                assert_eq!(counters, NetCounters::default(), "no frame has come by");
                assert_eq!(driver.transport.interrupts(0), 0, "nor an interrupt");
            } else {
                assert_eq!((counters.sent_frames, counters.sent_dropped), (200, 0));
                assert!(counters.received_frames >= 200);
                assert!(driver.transport.interrupts(0) > 0);
            }
        }
    });
}

#[test]
fn a_card_can_be_reset_and_used_again_and_leaks_nothing() {
    in_own_network(|| {
        for vhost in ways() {
            let mut net = Net::new(configured("dbt1", 2), with(vhost)).unwrap();
            let mut opened = None;
            for _ in 0..50 {
                let mut driver = start(&mut net, EVENT_IDX);
                let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
                socket.send_to(b"again", "192.0.2.2:4000").unwrap();
                wait_for(&mut driver, 0, b"again");
                net.reset();
                net.reset();
                assert!(no_thread_named("net0-dbt1") && no_thread_named("net1-dbt1"), "threads have ended");
                assert_eq!(net.handle().mac(), mac());
                let used = driver.queues[0].peek_used();
                socket.send_to(b"unheard", "192.0.2.2:4000").unwrap();
                assert_eq!(driver.queues[0].peek_used(), used, "nothing of the guest's is touched");
                drop(driver);
                // Other tests of this process open and close theirs meanwhile: what leaks grows all the same.
                let now = open_descriptors();
                opened.get_or_insert(now);
            }
            assert_descriptors_below(opened.unwrap() + 40);
        }
    });
}

#[test]
fn queue_pairs_come_and_go_as_the_driver_says() {
    in_own_network(|| {
        for vhost in ways() {
            let mut net = Net::new(configured("dbt2", 2), with(vhost)).unwrap();
            assert_ne!(net.features() & features::MQ, 0);
            assert_eq!(net.queue_sizes().len(), 5);
            let mut driver = start(&mut net, 0);
            for i in 0..64 {
                driver.queues[2].add(&[writable(DATA + i * 2048, 2048)]);
            }
            let answer = DATA + 0x30_1000;
            let command = |driver: &mut Driver, bytes: &[u8]| {
                driver.write(DATA + 0x30_0000, bytes);
                driver.write(answer, &[0xff]);
                let length = u32::try_from(bytes.len()).unwrap();
                driver.queues[4].add(&[readable(DATA + 0x30_0000, length), writable(answer, 1)]);
                assert_eq!(driver.queues[4].wait_used().1, 1);
                driver.read(answer, 1)[0]
            };
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            for _ in 0..5 {
                assert_eq!(command(&mut driver, &[4, 0, 2, 0]), 0);
                assert_eq!(command(&mut driver, &[4, 0, 1, 0]), 0);
                // With one pair, all goes there.
                for port in 4000..4016 {
                    socket.send_to(b"to the first", ("192.0.2.2", port)).unwrap();
                    wait_for(&mut driver, 0, b"to the first");
                }
            }
            assert_eq!(command(&mut driver, &[4, 0, 3, 0]), 1, "there are two");
            assert_eq!(command(&mut driver, &[4, 0, 2, 0]), 0);
            // Flows are spread by a hash: of so many, some go to the second.
            for port in 4100..4400 {
                socket.send_to(b"to either", ("192.0.2.2", port)).unwrap();
                if driver.queues[2].peek_used() > 0 {
                    break;
                }
                while driver.queues[0]
                    .used()
                    .map(|(head, _)| driver.queues[0].add(&[writable(DATA + u64::from(head) * 2048, 2048)]))
                    .is_some()
                {}
                std::thread::yield_now();
            }
            driver.queues[2].wait_used();
        }
    });
}

#[test]
fn the_driver_can_change_the_address_and_what_it_hears() {
    in_own_network(|| {
        for vhost in ways() {
            let mut net = Net::new(configured("dbt3", 1), with(vhost)).unwrap();
            let mut driver = start(&mut net, 0);
            let answer = DATA + 0x30_1000;
            let command = |driver: &mut Driver, bytes: &[u8]| {
                driver.write(DATA + 0x30_0000, bytes);
                driver.write(answer, &[0xff]);
                let length = u32::try_from(bytes.len()).unwrap();
                driver.queues[2].add(&[readable(DATA + 0x30_0000, length), writable(answer, 1)]);
                driver.queues[2].wait_used();
                assert_eq!(driver.read(answer, 1), [0]);
            };
            command(&mut driver, &[0, 0, 0]);
            command(&mut driver, &[1, 1, 2, 0, 0, 0, 0, 7]);
            let mut config = [0; 8];
            net.read_config(0, &mut config);
            assert_eq!(config, [2, 0, 0, 0, 0, 7, 1, 0]);
            // Frames to the old address do not come any more, those to the new one do.
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            socket.send_to(b"to the old", "192.0.2.2:4000").unwrap();
            neighbour("dbt3", MacAddress::new([2, 0, 0, 0, 0, 7]).unwrap());
            socket.send_to(b"to the new", "192.0.2.2:4000").unwrap();
            loop {
                let (head, written) = driver.queues[0].wait_used();
                let frame = driver.read(driver.queues[0].address(head), written as usize);
                assert!(!frame.ends_with(b"to the old"));
                if frame.ends_with(b"to the new") {
                    break;
                }
            }
            net.reset();
            net.read_config(0, &mut config);
            assert_eq!(config[..6], mac().bytes(), "a reset brings the first address back");
        }
    });
}

#[test]
fn a_cable_can_be_pulled_and_an_interface_removed() {
    in_own_network(|| {
        let mut net = Net::new(configured("dbt4", 1), options()).unwrap();
        let handle = net.handle();
        let driver = start(&mut net, 0);
        let status = |net: &Net| {
            let mut status = [0; 2];
            net.read_config(6, &mut status);
            status[0]
        };
        assert_eq!(status(&net), 1);
        handle.set_link(false);
        assert_eq!((status(&net), driver.transport.config_changes()), (0, 1));
        handle.set_link(false);
        assert_eq!(driver.transport.config_changes(), 1, "nothing has changed");
        handle.set_link(true);
        assert_eq!((status(&net), driver.transport.config_changes()), (1, 2));
        ip("link del dbt4");
        driver.transport.wait_config_change(2);
        assert_eq!(status(&net), 0);
        assert!(handle.failure().is_some());
        net.reset();
        assert!(no_thread_named("net0-dbt4"));
    });
}

#[test]
fn hostile_queues_need_a_reset_and_no_more() {
    in_own_network(|| {
        let mut net = Net::new(configured("dbt5", 1), options()).unwrap();
        for (what, breakage) in BREAKAGES {
            for queue in 0..3 {
                let mut driver = Driver::start(&mut net, 0, 4 << 20).unwrap();
                breakage(&mut driver.queues[queue], DATA);
                driver.queues[queue].kick();
                let why = driver.transport.wait_needs_reset();
                assert!(!why.is_empty(), "{what}");
                net.reset();
            }
        }
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        let mut driver = start(&mut net, 0);
        socket.send_to(b"still here", "192.0.2.2:4000").unwrap();
        wait_for(&mut driver, 0, b"still here");
    });
}

/// Ends the flood, also when the test fails.
struct Flood<'s>(&'s std::sync::atomic::AtomicBool);

impl Drop for Flood<'_> {
    fn drop(&mut self) {
        self.0.store(false, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_flood_without_buffers_or_with_does_not_keep_the_card_from_stopping() {
    in_own_network(|| {
        let tap = configured("dbt6", 1);
        let mut net = Net::new(tap, options()).unwrap();
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        let flooding = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            let _flood = Flood(&flooding);
            scope.spawn(|| {
                while flooding.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = socket.send_to(&[0; 1000], "192.0.2.2:4000");
                }
            });
            for _ in 0..5 {
                let mut driver = start(&mut net, 0);
                for _ in 0..500 {
                    let (head, _) = driver.queues[0].wait_used();
                    recycle(&mut driver.queues[0], head);
                }
                net.reset();
            }
            // No buffers at all: the thread sleeps, however much comes. It is not running most of the time, if it is asked often.
            let driver = Driver::start(&mut net, 0, 4 << 20).unwrap();
            let named = |task: &std::path::PathBuf| {
                std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("net0-dbt6"))
            };
            // A thread names itself when it has begun.
            let tid = loop {
                let mut tasks =
                    std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
                if let Some(tid) = tasks.find(named) {
                    break tid;
                }
                std::thread::yield_now();
            };
            let switches = || {
                let status = std::fs::read_to_string(tid.join("status")).unwrap();
                let line = status
                    .lines()
                    .find(|line| line.starts_with("voluntary_ctxt_switches"))
                    .unwrap()
                    .to_owned();
                line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
            };
            // It may take one turn to find out, and that turn a while on a machine with much to do.
            let quiet = || {
                let before = switches();
                std::thread::sleep(std::time::Duration::from_millis(300));
                let ticks = std::fs::read_to_string(tid.join("stat")).unwrap();
                switches() <= before + 3 && ticks.contains(") S ")
            };
            assert!((0..100).any(|_| quiet()), "it sleeps, and is not woken");
            drop(driver);
        });
    });
}

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
        assert!(matches!(Tap::open("dbt9", 1), Err(TapError::Busy { .. })));
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

#[test]
fn the_kernel_says_that_a_queue_is_broken() {
    in_own_network(|| {
        if !ways().contains(&Vhost::On) {
            println!("SKIP the_kernel_says_that_a_queue_is_broken: there is no /dev/vhost-net");
            return;
        }
        let mut net = Net::new(configured("dbt11", 1), with(Vhost::On)).unwrap();
        for (what, breakage) in BREAKAGES {
            let mut driver = Driver::start(&mut net, 0, 4 << 20).unwrap();
            breakage(&mut driver.queues[1], DATA);
            driver.queues[1].kick();
            assert!(driver.transport.wait_needs_reset().contains("vhost"), "{what}");
            net.reset();
        }
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        let mut driver = start(&mut net, 0);
        socket.send_to(b"still here", "192.0.2.2:4000").unwrap();
        wait_for(&mut driver, 0, b"still here");
    });
}

#[test]
fn without_vhost_on_is_an_error_and_auto_is_not() {
    in_own_network(|| {
        if ways().contains(&Vhost::On) {
            assert!(Net::new(Tap::create("dbt12", 1).unwrap(), with(Vhost::Auto)).unwrap().uses_vhost());
            return;
        }
        match Net::new(Tap::create("dbt12", 1).unwrap(), with(Vhost::On)) {
            Err(error @ NetError::Vhost { .. }) => {
                assert!(error.to_string().contains("load the module vhost_net"))
            }
            other => panic!("{:?}", other.map(|net| net.uses_vhost())),
        }
        assert!(!Net::new(Tap::create("dbt12", 1).unwrap(), with(Vhost::Auto)).unwrap().uses_vhost());
    });
}
