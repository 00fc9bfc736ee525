// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections without the device's thread, which would go on at its own pace.

use super::super::muxer::FIRST_TOKEN;
use super::*;
use crate::testing::run_until_quiet;

#[test]
fn nothing_is_reported_for_ever_that_cannot_be_dealt_with() {
    let place = Place::new();
    let device = vsock(&place);
    let listener = UnixListener::bind(place.path("s_1")).unwrap();
    let mut driver = Driver::new(device.queue_sizes(), 0, 1 << 20);
    let (events, mut multiplexer) = device.multiplexer(driver.activation(0)).unwrap();
    let mut say = |driver: &mut Driver, header: Option<Header>| -> Vec<(Option<Op>, u32)> {
        if let Some(header) = header {
            driver.write(OUT, &header.bytes());
            driver.queues[1].add(&[readable(OUT, SIZE)]);
        }
        for i in 0..4 {
            driver.queues[0].add(&[writable(IN + i * 200, 200)]);
        }
        run_until_quiet(&mut multiplexer, &events);
        let used = std::iter::from_fn(|| driver.queues[0].used()).collect::<Vec<_>>();
        let header = |head| driver.read(driver.queues[0].address(head), SIZE as usize).try_into().unwrap();
        used.into_iter().map(|(head, _)| Header::parse(&header(head))).map(|it| (it.op, it.flags)).collect()
    };
    let header = |op, port| Guest::header(op, port, 1);
    // The guest has no room for what comes.
    assert_eq!(
        say(&mut driver, Some(Header { buffer_size: 4, ..header(Op::Request, 10) })),
        [(Some(Op::Response), 0)]
    );
    let (mut program, _) = listener.accept().unwrap();
    program.write_all(b"123456").unwrap();
    assert_eq!(say(&mut driver, None), [(Some(Op::Data), 0), (Some(Op::CreditRequest), 0)]);
    assert_eq!(say(&mut driver, None), []);
    assert_eq!(say(&mut driver, Some(header(Op::CreditUpdate, 10))), [(Some(Op::Data), 0)]);
    // The program sends no more, and then is gone.
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(say(&mut driver, None), [(Some(Op::Shutdown), 2)]);
    drop(program);
    assert_eq!(say(&mut driver, None), [(Some(Op::Shutdown), 3)]);
    assert_eq!(say(&mut driver, None), []);
    // The guest receives no more, and then the program is gone.
    assert_eq!(say(&mut driver, Some(header(Op::Request, 11))), [(Some(Op::Response), 0)]);
    let (program, _) = listener.accept().unwrap();
    assert_eq!(say(&mut driver, Some(Header { flags: 1, ..header(Op::Shutdown, 11) })), []);
    drop(program);
    assert_eq!(say(&mut driver, None), [(Some(Op::Shutdown), 3)]);
    assert_eq!(say(&mut driver, None), []);
}

/// The thread would hand on what waits as soon as there is room for it.
#[test]
fn what_comes_later_stays_behind_what_waits() {
    let place = Place::new();
    let mut muxer = Muxer::new(Guest::CID, Arc::new(Listener::bind(&place.socket()).unwrap()));
    let listener = UnixListener::bind(place.path("s_1")).unwrap();
    let events = Events::new().unwrap();
    let mut driver = Driver::new(&[16, 16], 0, 1 << 20);
    let mut rings =
        driver.activation(0).queues.into_iter().map(|queue| Ring::new(queue, driver.memory.clone()));
    let mut transmit = rings.nth(1).unwrap();
    let mut chain = Chain::new();
    let mut say = |driver: &mut Driver, muxer: &mut Muxer, op, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap();
        driver.write(OUT, &Header { length, ..Guest::header(op, 10, 1) }.bytes());
        driver.write(OUT + u64::from(SIZE), data);
        driver.queues[1].add(&[readable(OUT, SIZE + length)]);
        assert!(transmit.pop(&mut chain).unwrap());
        muxer.receive(&chain, &driver.memory, &events).unwrap();
        assert_eq!(muxer.len(), 1);
    };
    say(&mut driver, &mut muxer, Op::Request, &[]);
    let (mut program, _) = listener.accept().unwrap();
    program.set_nonblocking(true).unwrap();
    let mut sent = Vec::new();
    let mut got = Vec::new();
    let mut part = |got: &mut Vec<u8>, length: usize| {
        let mut bytes = vec![0; length];
        let read = program.read(&mut bytes).unwrap_or(0);
        got.extend(&bytes[..read]);
        read
    };
    say(&mut driver, &mut muxer, Op::Data, b"at once");
    sent.extend(b"at once");
    assert_eq!(part(&mut got, 100), 7, "what finds room does not wait");
    // More than the socket takes, and as much as may be sent; there is room again when the last comes.
    for i in 0..5 {
        say(&mut driver, &mut muxer, Op::Data, &[i; 50_000]);
        sent.extend([i; 50_000]);
    }
    muxer.ready(FIRST_TOKEN, &events);
    while part(&mut got, 1 << 20) > 0 {}
    assert!(got.len() < sent.len(), "a socket takes less");
    say(&mut driver, &mut muxer, Op::Data, b"the last");
    sent.extend(b"the last");
    assert_eq!(part(&mut got, 100), 0);
    // Bit by bit, as the program reads.
    while got.len() < sent.len() {
        muxer.ready(FIRST_TOKEN, &events);
        assert!(part(&mut got, 1000) > 0);
    }
    assert!(got == sent);
}

#[test]
fn beyond_the_most_connections_there_are_no_more_until_one_has_gone() {
    let place = Place::new();
    let _listener = UnixListener::bind(place.path("s_1")).unwrap();
    let mut muxer = Muxer::new(Guest::CID, Arc::new(Listener::bind(&place.socket()).unwrap()));
    muxer.limit(2);
    let events = Events::new().unwrap();
    let mut driver = Driver::new(&[16, 16], 0, 1 << 20);
    let mut rings =
        driver.activation(0).queues.into_iter().map(|queue| Ring::new(queue, driver.memory.clone()));
    let (mut receive, mut transmit) = (rings.next().unwrap(), rings.next().unwrap());
    let mut chain = Chain::new();
    let mut say = |driver: &mut Driver, muxer: &mut Muxer, op, port| {
        driver.write(OUT, &Guest::header(op, port, 1).bytes());
        driver.queues[1].add(&[readable(OUT, SIZE)]);
        assert!(transmit.pop(&mut chain).unwrap());
        muxer.receive(&chain, &driver.memory, &events).unwrap();
        muxer.len()
    };
    let asks = |muxer: &mut Muxer| {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        stream.write_all(b"CONNECT 7\n").unwrap();
        muxer.accept(&events).unwrap();
        stream.set_nonblocking(true).unwrap();
        (stream.read(&mut [0]).ok(), muxer.len())
    };
    assert_eq!(say(&mut driver, &mut muxer, Op::Request, 10), 1);
    assert_eq!(say(&mut driver, &mut muxer, Op::Request, 11), 2);
    assert_eq!(say(&mut driver, &mut muxer, Op::Request, 12), 2);
    assert_eq!(asks(&mut muxer), (Some(0), 2), "it is hung up on");
    // The one too many is reset, the others are there.
    let mut answer = Chain::new();
    for (op, port) in [(Op::Reset, 12), (Op::Response, 10), (Op::Response, 11)] {
        driver.queues[0].add(&[writable(IN, 200)]);
        assert!(receive.pop(&mut answer).unwrap());
        assert_eq!(muxer.fill(&answer, &driver.memory, &events).unwrap(), Some(SIZE));
        let header = Header::parse(&driver.read(IN, SIZE as usize).try_into().unwrap());
        assert_eq!((header.op, header.destination_port), (Some(op), port));
    }
    assert_eq!(say(&mut driver, &mut muxer, Op::Reset, 10), 1);
    assert_eq!(asks(&mut muxer), (None, 2), "it waits for the guest's answer");
    assert_eq!(say(&mut driver, &mut muxer, Op::Request, 12), 2);
    assert_eq!(say(&mut driver, &mut muxer, Op::Reset, 11), 1);
    assert_eq!(say(&mut driver, &mut muxer, Op::Request, 12), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever packets a guest sends: nothing panics, no bound is exceeded, and what it is answered is well-formed.
    #[test]
    fn any_packets_are_survived(
        packets in prop::collection::vec(
            (0..9_u16, 0..4_u32, 0..3_u32, 0..4_u32, any::<u32>(), any::<u32>(), 0..3000_u32),
            1..120,
        ),
    ) {
        let place = Place::new();
        let listener = UnixListener::bind(place.path("s_1")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let own = Arc::new(Listener::bind(&place.socket()).unwrap());
        let mut muxer = Muxer::new(3, own);
        let events = Events::new().unwrap();
        let mut driver = Driver::new(&[16, 16], 0, 1 << 20);
        let mut rings = driver.activation(0).queues.into_iter().map(|queue| Ring::new(queue, driver.memory.clone()));
        let (mut receive, mut transmit) = (rings.next().unwrap(), rings.next().unwrap());
        let mut chain = Chain::new();
        let mut programs = Vec::new();
        for (op, guest, host, flags, buffer_size, forwarded, length) in packets {
            let mut bytes = Guest::header(Op::Data, guest, host).bytes();
            bytes[30..32].copy_from_slice(&op.to_le_bytes());
            let header = Header { flags, buffer_size, forwarded, length, ..Header::parse(&bytes) };
            let mut bytes = header.bytes();
            bytes[30..32].copy_from_slice(&op.to_le_bytes());
            driver.write(OUT, &bytes);
            driver.queues[1].add(&[readable(OUT, SIZE + length)]);
            prop_assert!(transmit.pop(&mut chain).unwrap());
            if muxer.can_take() {
                muxer.receive(&chain, &driver.memory, &events).unwrap();
            }
            transmit.push(chain.head(), 0).unwrap();
            if let Ok((stream, _)) = listener.accept() {
                let _ = (&stream).write(b"from the host");
                programs.push(stream);
            }
            while programs.len() > 3 {
                programs.remove(0);
            }
            for token in FIRST_TOKEN..FIRST_TOKEN + 40 {
                muxer.ready(token, &events);
            }
            for _ in 0..8 {
                driver.queues[0].add(&[writable(IN, 200)]);
                prop_assert!(receive.pop(&mut chain).unwrap());
                let written = muxer.fill(&chain, &driver.memory, &events).unwrap();
                receive.push(chain.head(), written.unwrap_or(0)).unwrap();
                if let Some(written) = written {
                    let bytes = driver.read(IN, SIZE as usize);
                    let header = Header::parse(&bytes.try_into().unwrap());
                    prop_assert!(header.op.is_some());
                    prop_assert_eq!(header.length + SIZE, written);
                    prop_assert!(written <= 200);
                }
            }
            prop_assert!(muxer.len() <= 12, "there are no more ports than that");
        }
    }
}
