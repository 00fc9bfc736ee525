// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! In a process that has no descriptor left.

use std::env;
use std::fs::File;
use std::process::Command;
use std::sync::mpsc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::worker::{LISTENER, RESUME};
use super::*;

/// Set in the process whose descriptors are used up. Others have tests beside this one.
const ALONE: &str = "DOORBELL_TEST_WITHOUT_DESCRIPTORS";

/// Runs the test `name` of this module in a process of its own, or says that this is it.
fn alone(name: &str) -> bool {
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// All descriptors that the process may still have.
fn all_descriptors() -> Vec<File> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum }).unwrap();
    let first = File::open("/dev/null").unwrap();
    let more: Vec<File> = std::iter::from_fn(|| first.try_clone().ok()).collect();
    [first].into_iter().chain(more).collect()
}

#[test]
fn host_programs_wait_quietly_until_there_is_a_descriptor() {
    if !alone("host_programs_wait_quietly_until_there_is_a_descriptor") {
        return;
    }
    let place = Place::new();
    let device = vsock(&place);
    let mut driver = Driver::new(device.queue_sizes(), 0, 1 << 20);
    driver.queues[0].add(&[writable(IN, BUFFER)]);
    let (events, mut multiplexer) = device.multiplexer(driver.activation(0)).unwrap();
    let (heard, hear) = mpsc::channel();
    let _worker = Worker::spawn("test", events, move |token, events: &Events| {
        if matches!(token, LISTENER | RESUME) {
            heard.send(token).unwrap();
        }
        multiplexer.ready(token, events)
    })
    .unwrap();

    let mut descriptors = all_descriptors();
    // The last one is the program's own.
    descriptors.pop();
    let mut program = UnixStream::connect(place.socket()).unwrap();
    program.write_all(b"CONNECT 52\n").unwrap();
    let tokens: Vec<u64> = hear.iter().take(6).collect();
    assert_eq!(tokens, [LISTENER, RESUME].repeat(3), "it is told of once, and looked for now and then");
    assert_eq!(driver.queues[0].peek_used(), 0);

    drop(descriptors);
    driver.queues[0].wait_used();
    let header = Header::parse(&driver.read(IN, SIZE as usize).try_into().unwrap());
    assert_eq!((header.op, header.destination_port), (Some(Op::Request), 52));
    // And others need not wait.
    let _ = hear.try_iter().count();
    drop(UnixStream::connect(place.socket()).unwrap());
    assert_eq!(hear.recv().unwrap(), LISTENER);
}
