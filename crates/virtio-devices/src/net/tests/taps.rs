// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The card on a tap, in a network of the test's own.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use super::super::features;
use crate::sys::tap::host;
use crate::testing::{
    BREAKAGES, Driver, DriverQueue, EVENT_IDX, assert_descriptors_below, no_thread_named, open_descriptors,
    readable, writable,
};
use crate::{
    ActivateError, MacAddress, Net, NetCounters, NetError, NetOptions, Tap, TapError, Vhost, VirtioDevice,
};

const DATA: u64 = Driver::DATA;

/// Runs `test` on a thread that has a network of its own, or says why not.
pub(super) fn in_own_network(test: fn()) {
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

pub(super) fn ip(arguments: &str) {
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
pub(super) fn persistent(name: &str, queues: usize) {
    let tap = Tap::create(name, queues).unwrap();
    host::set_persistent(tap.queue(0).unwrap(), true).unwrap();
}

/// What opening gives as soon as nobody has the interface: a program that another test is just starting may have a copy of a descriptor
/// that is closed here, until it runs.
pub(super) fn open_when_free(name: &str, queues: usize) -> Result<Tap, TapError> {
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
        assert!(handle.link_is_up() && handle.failure().is_none());
        handle.set_link(false);
        assert!(!handle.link_is_up() && handle.failure().is_none());
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
fn a_card_is_what_its_tap_can_do_and_one_pair_is_used_by_who_knows_of_one() {
    in_own_network(|| {
        let tap = Tap::create("dbt18", 2).unwrap();
        let offloads = tap.offloads().features();
        let mut net = Net::new(tap, options()).unwrap();
        assert_eq!(net.device_type(), 1);
        // MAC, STATUS, MRG_RXBUF, CTRL_VQ, CTRL_RX, CTRL_RX_EXTRA, CTRL_MAC_ADDR, MTU, MQ.
        let own = [5, 16, 15, 17, 18, 20, 23, 3, 22].into_iter().fold(0, |all, bit| all | 1_u64 << bit);
        assert_eq!(net.features(), own | offloads);
        let single = Net::new(Tap::create("dbt23", 1).unwrap(), options()).unwrap();
        assert_eq!((single.features(), single.queue_sizes().len()), ((own | offloads) & !features::MQ, 3));
        // The control queue is the third to a driver that knows of one pair, and the last to one that knows of all.
        for (features, control) in [(net.features() & !features::MQ, 2), (net.features(), 4)] {
            let mut driver = Driver::start_with(&mut net, features, 1 << 20).unwrap();
            driver.write(DATA, &[0, 0, 0]);
            driver.queues[control].add(&[readable(DATA, 3), writable(DATA + 3, 1)]);
            assert_eq!(driver.queues[control].wait_used().1, 1);
            net.reset();
        }
        // One pair there must be.
        let driver = Driver::new(net.queue_sizes(), 0, 0);
        for (missing, wanted) in [(0, Some(0)), (1, Some(1)), (2, None), (3, None), (4, None)] {
            let mut activation = driver.activation(net.features());
            activation.queues.retain(|queue| queue.index != missing);
            let error = net.activate(activation).err();
            assert_eq!(
                error.map(
                    |error| matches!(error, ActivateError::MissingQueue(index) if Some(index) == wanted)
                ),
                wanted.map(|_| true),
                "{missing}"
            );
            net.reset();
        }
    });
}

#[test]
fn what_a_guest_does_not_finish_the_host_does() {
    in_own_network(|| {
        for vhost in ways() {
            let mut net = Net::new(configured("dbt21", 1), with(vhost)).unwrap();
            let all = net.features();
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            let unfinished = |driver: &mut Driver, payload: &[u8]| {
                socket.send_to(payload, "192.0.2.2:4000").unwrap();
                loop {
                    let (head, written) = driver.queues[0].wait_used();
                    let frame = driver.read(driver.queues[0].address(head), written as usize);
                    recycle(&mut driver.queues[0], head);
                    if frame.ends_with(payload) {
                        // VIRTIO_NET_HDR_F_NEEDS_CSUM
                        return frame[0] & 1 == 1;
                    }
                }
            };
            for (features, leaves) in [(all & !features::GUEST_CSUM, false), (all, true)] {
                let mut driver = Driver::start_with(&mut net, features, 4 << 20).unwrap();
                for i in 0..64 {
                    driver.queues[0].add(&[writable(DATA + i * 2048, 2048)]);
                }
                assert_eq!(unfinished(&mut driver, b"as agreed"), leaves);
                if leaves {
                    // VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: none any more.
                    driver.write(DATA + 0x30_0000, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                    driver.queues[2].add(&[readable(DATA + 0x30_0000, 10), writable(DATA + 0x30_1000, 1)]);
                    driver.queues[2].wait_used();
                    assert!(!unfinished(&mut driver, b"as asked for"));
                }
                net.reset();
            }
        }
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
