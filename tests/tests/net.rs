// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's network: bytes both ways over a TAP interface, and interfaces that cannot be had.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, UdpSocket};
use std::thread;

use doorbell_tests::guest::{Finished, Guest, Host, Tap};
use doorbell_tests::histogram::Histogram;
use doorbell_tests::{host_or_skip, noise, skip};

const LEN: usize = 8 << 20;

/// Sends and receives over TCP, both ways at once; the guest compares what it gets, and we do.
fn both_ways(host: &Host, tap: &Tap, subnet: &str, more: &str) -> Finished {
    let (down, up) = (noise(LEN, 1), noise(LEN, 2));
    let listener = TcpListener::bind(format!("{subnet}.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (to_guest, from_guest) = (down.clone(), up.clone());
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sender = thread::spawn(move || {
            writer.write_all(&to_guest).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        assert!(received == from_guest, "{} of {LEN} bytes, or other ones, from the guest", received.len());
    });
    let end = Guest::linux(host)
        .cpus(2)
        .option("--net", format!("tap={}{more}", tap.name()))
        .file("down", &down)
        .file("up", &up)
        .patience(2)
        .script(&format!(
            r#"
            ip link set eth0 up
            ip addr add {subnet}.2/24 dev eth0
            echo "mac=$(cat /sys/class/net/eth0/address)"
            ping -c 3 {subnet}.1 >/dev/null && echo ping=yes
            nc {subnet}.1 {port} </up >/tmp/down
            cmp /tmp/down /down && echo same=yes
            cat /proc/interrupts
            "#
        ))
        .run();
    end.assert_status(0);
    peer.join().unwrap();
    assert_eq!((end.value("ping").as_str(), end.value("same").as_str()), ("yes", "yes"), "{end}");
    end
}

#[test]
fn bytes_both_ways_at_once_arrive_whole() {
    let host = host_or_skip!();
    let Some(tap) = Tap::new("doortest0", "10.0.78.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let end = both_ways(&host, &tap, "10.0.78", ",mac=02:00:00:00:be:11,vhost=off");
    assert_eq!(end.value("mac"), "02:00:00:00:be:11");
    let text = end.text();
    for queue in ["virtio0-input.0", "virtio0-output.0"] {
        assert!(text.lines().any(|line| line.contains(queue) && line.contains("MSIX")), "{text}");
    }
}

#[test]
fn carried_by_the_hosts_kernel_bytes_arrive_whole() {
    let host = host_or_skip!();
    if !std::path::Path::new("/dev/vhost-net").exists() {
        skip!("this host has no vhost-net");
    }
    let Some(tap) = Tap::new("doortest3", "10.0.81.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let _ = both_ways(&host, &tap, "10.0.81", ",vhost=on");
}

/// Two networks: one that the program carries, one that the host's kernel does.
fn two(names: [&'static str; 2], subnets: [&str; 2]) -> Option<[Tap; 2]> {
    if !std::path::Path::new("/dev/vhost-net").exists() {
        return None;
    }
    let [program, kernel] = [0, 1].map(|n| Tap::new(names[n], &format!("{}.1/24", subnets[n])));
    Some([program?, kernel?])
}

#[test]
fn unbound_and_bound_ten_times_it_still_works() {
    let host = host_or_skip!();
    let Some([program, kernel]) = two(["doortest5", "doortest6"], ["10.0.88", "10.0.89"]) else {
        skip!("needs TAP interfaces, which takes root, and vhost-net")
    };
    let end = Guest::linux(&host)
        .cpus(2)
        .option("--net", format!("tap={},vhost=off", program.name()))
        .option("--net", format!("tap={},vhost=on", kernel.name()))
        .patience(2)
        .script(
            r#"
            cd /sys/bus/virtio/drivers/virtio_net
            n=0
            while [ $n -lt 10 ]; do
                for device in 0 1; do
                    echo virtio$device >unbind
                    echo virtio$device >bind
                    ip link set eth$device up
                    ip addr add 10.0.8$((device + 8)).2/24 dev eth$device
                    ping -c 1 -W 10 10.0.8$((device + 8)).1 >/dev/null || echo "broken=$device the ${n}th time"
                done
                n=$((n + 1))
            done
            echo times=$n
            "#,
        )
        .run();
    end.assert_status(0);
    assert_eq!(end.value("times"), "10");
    assert!(end.lines_with("broken").is_empty(), "{end}");
}

/// A guest's returns from `KVM_RUN`, as the VMM counts them and as the kernel does, and the interrupts of its two networks.
struct Returns {
    own: u64,
    kernel: Option<u64>,
    interrupts: [u64; 2],
}

/// Runs a guest that sends so many datagrams over each of its networks, each when the one before has come back.
fn returns_with(host: &Host, taps: [&Tap; 2], port: u16, datagrams: u32) -> Returns {
    // No other guest runs meanwhile, so the hits of all threads are this one's.
    let kernel = Histogram::start("kvm/kvm_userspace_exit", "common_pid");
    let end = Guest::linux(host)
        .inside(env!("CARGO_BIN_EXE_inside"))
        .flag("--report")
        .option("--net", format!("tap={},vhost=off", taps[0].name()))
        .option("--net", format!("tap={},vhost=on", taps[1].name()))
        .patience(2)
        .script(&format!(
            r#"
            for device in 0 1; do
                ip link set eth$device up
                ip addr add 10.0.9$device.2/24 dev eth$device
                inside pingpong 10.0.9$device.1:{port} 1
                inside pingpong 10.0.9$device.1:{port} {datagrams} && echo sent$device=yes
                echo "arrived$device=$(grep virtio$device-input /proc/interrupts | awk '{{ print $2 }}')"
            done
            "#
        ))
        .run();
    let kernel = kernel.map(|kernel| kernel.counts().values().sum());
    end.assert_status(0);
    let interrupts = [0, 1].map(|device| {
        assert_eq!(end.value(&format!("sent{device}")), "yes", "{end}");
        end.value(&format!("arrived{device}")).parse().unwrap()
    });
    Returns { own: end.report("exits")[0], kernel, interrupts }
}

#[test]
fn neither_notifying_nor_interrupting_comes_by_userspace() {
    const DATAGRAMS: u32 = 2000;
    let host = host_or_skip!();
    let Some([program, kernel]) = two(["doortest7", "doortest8"], ["10.0.90", "10.0.91"]) else {
        skip!("needs TAP interfaces, which takes root, and vhost-net")
    };
    // Gives back what comes over either network; it ends with the process.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            // The interface may be gone already.
            let _ = socket.send_to(&datagram[..length], from);
        }
    });
    let taps = [&program, &kernel];
    let (few, many) = (returns_with(&host, taps, port, 0), returns_with(&host, taps, port, DATAGRAMS));
    println!(
        "returns of KVM_RUN: {} and {}; kvm_userspace_exit: {:?} and {:?}; interrupts: {:?} and {:?}",
        few.own, many.own, few.kernel, many.kernel, few.interrupts, many.interrupts
    );
    for (few, many) in few.interrupts.into_iter().zip(many.interrupts) {
        assert!(many > few + u64::from(DATAGRAMS) / 2, "{few} and {many} interrupts of the receive queues");
    }
    // Anything that came by userspace would come thousands of times.
    assert!(
        many.own < few.own + 400,
        "{} returns of KVM_RUN without the datagrams, {} with them",
        few.own,
        many.own
    );
    let (Some(few), Some(many)) = (few.kernel, many.kernel) else {
        skip!("no tracepoint kvm_userspace_exit with histograms here");
    };
    assert!(few > 0, "the tracepoint counts");
    assert!(many < few + 400, "{few} hits of kvm_userspace_exit without the datagrams, {many} with them");
}

#[test]
fn a_network_that_cannot_be_had_is_one_line() {
    let host = host_or_skip!();
    let Some(_tap) = Tap::new("doortest2", "10.0.80.1/24") else {
        skip!("makes a TAP interface, which takes root")
    };
    let refused = |nets: &[&str], words: &[&str]| {
        let mut guest = Guest::linux(&host);
        for net in nets {
            guest = guest.option("--net", net);
        }
        let end = guest.run();
        end.assert_status(2);
        let line = end.error_line();
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
    };
    refused(&["tap=nosuchtap"], &["nosuchtap"]);
    refused(&["tap=lo"], &["lo", "no tap"]);
    refused(&["tap=doortest2,mac=ff:ff:ff:ff:ff:ff"], &["ff:ff:ff:ff:ff:ff", "unicast"]);
    refused(
        &["tap=doortest2,mac=02:00:00:00:00:01", "tap=doortest4,mac=02:00:00:00:00:01"],
        &["same address"],
    );
    // Twice the same: the second finds it busy.
    refused(&["tap=doortest2,mac=02:00:00:00:00:01", "tap=doortest2,mac=02:00:00:00:00:02"], &["doortest2"]);
}
