// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as a driver finds it and whoever makes it, whatever goes through it.

use super::*;

#[test]
fn a_device_can_be_reset_and_used_again_and_leaks_nothing() {
    let place = Place::new();
    let mut device = vsock(&place);
    let mut first = None;
    for _ in 0..50 {
        let mut guest = Guest::start(&mut device, 0);
        let (mut stream, _) = connect(&place, &mut guest, 52);
        device.reset();
        device.reset();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "connections end");
        drop((guest, stream));
        first.get_or_insert_with(open_descriptors);
    }
    assert_descriptors_below(first.unwrap() + 40);
    drop(device);
    assert!(!place.socket().exists());
}

#[test]
fn hostile_queues_need_a_reset_and_no_more() {
    let place = Place::new();
    let mut device = vsock(&place);
    for (what, breakage) in BREAKAGES {
        for queue in 0..2 {
            let mut driver = Driver::start(&mut device, 0, 2 << 20).unwrap();
            if queue == 0 {
                // Something to tell the guest, so that its buffers are looked at.
                driver.write(OUT, &Guest::header(Op::Data, 1, 1).bytes());
                driver.queues[1].add(&[readable(OUT, SIZE)]);
            }
            breakage(&mut driver.queues[queue], DATA + 0x1000);
            driver.queues[queue].kick();
            assert!(!driver.transport.wait_needs_reset().is_empty(), "{what}");
            device.reset();
        }
    }
    let mut guest = Guest::start(&mut device, 0);
    connect(&place, &mut guest, 52);
}

#[test]
fn a_driver_finds_the_guests_address_and_streams() {
    let place = Place::new();
    let device = Vsock::new(GuestCid::new(0x0403_0201).unwrap(), place.socket()).unwrap();
    // VIRTIO_VSOCK_F_STREAM
    assert_eq!((device.device_type(), device.features(), device.queue_sizes().len()), (19, 1, 3));
    let mut config = [0xff; 9];
    device.read_config(0, &mut config);
    assert_eq!(config, [1, 2, 3, 4, 0, 0, 0, 0, 0xff]);
    device.read_config(2, &mut config[..2]);
    assert_eq!(config[..2], [3, 4]);
}

#[test]
fn addresses_and_paths_that_cannot_be_are_refused() {
    for cid in [0, 1, 2, 0xffff_ffff, 1 << 32] {
        assert!(matches!(GuestCid::new(cid), Err(VsockError::Cid(bad)) if bad == cid));
    }
    let cid = GuestCid::new(3).unwrap();
    let place = Place::new();
    let first = Vsock::new(cid, place.socket()).unwrap();
    assert!(matches!(Vsock::new(cid, place.socket()), Err(VsockError::Busy(_))));
    drop(first);
    // One that was left behind by a program that was killed.
    drop(UnixListener::bind(place.socket()).unwrap());
    assert!(place.socket().exists());
    drop(Vsock::new(cid, place.socket()).unwrap());
    // One that somebody else has put there is theirs.
    let second = Vsock::new(cid, place.socket()).unwrap();
    fs::remove_file(place.socket()).unwrap();
    let other = UnixListener::bind(place.socket()).unwrap();
    drop(second);
    assert!(place.socket().exists());
    drop(other);
    fs::remove_file(place.socket()).unwrap();
    let datagrams = UnixDatagram::bind(place.socket()).unwrap();
    assert!(matches!(Vsock::new(cid, place.socket()), Err(VsockError::Busy(_))));
    assert!(place.socket().exists(), "so is that of another kind");
    drop(datagrams);
    fs::remove_file(place.socket()).unwrap();
    // With a port after it, it has to fit.
    let long = |length: usize| place.path(&"x".repeat(length - place.path("").as_os_str().len()));
    drop(Vsock::new(cid, long(96)).unwrap());
    assert!(matches!(Vsock::new(cid, long(97)), Err(VsockError::PathTooLong(_))));
    fs::write(place.socket(), b"a file").unwrap();
    assert!(matches!(Vsock::new(cid, place.socket()), Err(VsockError::NotASocket(_))));
    assert!(matches!(Vsock::new(cid, place.path("no/such")), Err(VsockError::Socket { .. })));
}

#[test]
fn what_is_no_packet_and_no_room_for_one_needs_a_reset() {
    let place = Place::new();
    let mut device = vsock(&place);
    // (queue, buffers, why). There is something to tell the guest, so that its buffers are looked at.
    let header = Header { length: 1, ..Guest::header(Op::Data, 1, 1) }.bytes();
    let table: [(usize, &[_], &str); 6] = [
        (1, &[readable(OUT, SIZE - 1)], "no whole packet header"),
        (1, &[writable(OUT, SIZE)], "no whole packet header"),
        (1, &[readable(OUT, SIZE)], "shorter than its packet says"),
        (0, &[writable(IN, SIZE)], "no room for a packet"),
        (0, &[readable(IN, SIZE + 1)], "no room for a packet"),
        (0, &[readable(IN, 1), writable(IN, 200)], "no room for a packet"),
    ];
    for (queue, buffers, why) in table {
        let mut driver = Driver::start(&mut device, 0, 2 << 20).unwrap();
        driver.write(OUT, &header);
        if queue == 0 {
            driver.queues[1].add(&[readable(OUT, SIZE + 1)]);
        }
        driver.queues[queue].add(buffers);
        assert!(driver.transport.wait_needs_reset().contains(why), "{buffers:?}");
        device.reset();
    }
}

/// What is the same whoever carries the sockets is tested above; here it is that the kernel does.
#[test]
fn the_kernel_carries_them() {
    let own = GuestCid::new(0x1234).unwrap();
    let mut device = match VhostVsock::new(own) {
        Ok(device) => device,
        Err(error) => {
            assert!(matches!(error, VsockError::Vhost { .. }), "{error}");
            println!("SKIP the_kernel_carries_them: {error}");
            return;
        }
    };
    assert!(matches!(VhostVsock::new(own), Err(VsockError::CidTaken(0x1234))));
    let mut config = [0; 8];
    device.read_config(0, &mut config);
    assert_eq!(config, [0x34, 0x12, 0, 0, 0, 0, 0, 0]);
    let mut first = None;
    for features in [0, EVENT_IDX].repeat(10) {
        let mut guest = Guest::start(&mut device, features);
        // Nobody listens to that port of the host.
        let header = Header { source_cid: 0x1234, ..Guest::header(Op::Request, 1000, 0x7654_3210) };
        guest.send(header, &[]);
        let (head, written) = guest.driver.queues[0].wait_used();
        assert_eq!(written, SIZE);
        let address = guest.driver.queues[0].address(head);
        let answer = Header::parse(&guest.driver.read(address, SIZE as usize).try_into().unwrap());
        assert_eq!(
            (answer.op, answer.destination_cid, answer.destination_port, answer.source_port),
            (Some(Op::Reset), 0x1234, 1000, 0x7654_3210)
        );
        device.reset();
        device.reset();
        first.get_or_insert_with(open_descriptors);
    }
    assert_descriptors_below(first.unwrap() + 15);
    for (what, breakage) in BREAKAGES {
        let mut driver = Driver::start(&mut device, 0, 2 << 20).unwrap();
        breakage(&mut driver.queues[1], DATA);
        driver.queues[1].kick();
        assert!(driver.transport.wait_needs_reset().contains("vhost"), "{what}");
        device.reset();
    }
}
