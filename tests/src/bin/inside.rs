// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tests have done inside a guest that a shell cannot do.
//!
//!     inside echo PORT                   listens on a vsock port for one connection, and gives back what comes over it
//!     inside call PORT                   the same over a connection that it makes to the host
//!     inside pingpong ADDRESS COUNT      sends so many datagrams, each when the one before has come back
//!     inside hostile ADDRESS QUEUE...    does to a virtio device what no driver may do, and says how often it asked for a reset
//!
//! A test takes it along with `Guest::inside`; it is `/bin/inside` there.

use std::io;
use std::net::{Shutdown, UdpSocket};
use std::time::Duration;

use doorbell_tests::hostile::{Function, attack};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["echo", port] => echo(port),
        ["call", port] => call(port),
        ["pingpong", address, count] => pingpong(address, count),
        ["hostile", address, ref queues @ ..] => {
            hostile(address, queues);
            Ok(())
        }
        _ => Err(io::Error::other("what is that?")),
    };
    if let Err(e) = done {
        println!("inside {words:?}: {e}");
        std::process::exit(1);
    }
}

fn echo(port: &str) -> io::Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, number(port)?)?;
    println!("listening");
    give_back(&listener.accept()?.0)
}

fn call(port: &str) -> io::Result<()> {
    give_back(&VsockStream::connect_with_cid_port(VMADDR_CID_HOST, number(port)?)?)
}

fn number(word: &str) -> io::Result<u32> {
    word.parse().map_err(io::Error::other)
}

/// Gives back what comes, until there is no more; then waits until the other side has gone too.
fn give_back(stream: &VsockStream) -> io::Result<()> {
    let bytes = io::copy(&mut &*stream, &mut &*stream)?;
    stream.shutdown(Shutdown::Write)?;
    println!("gave back {bytes}");
    Ok(())
}

fn pingpong(address: &str, count: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    // What is lost is lost for good, and the test fails.
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    for n in 0..number(count)? {
        socket.send(&n.to_le_bytes())?;
        let mut back = [0; 8];
        let length = socket.recv(&mut back)?;
        if back[..length] != n.to_le_bytes() {
            return Err(io::Error::other(format!("datagram {n} came back as another")));
        }
    }
    Ok(())
}

fn hostile(address: &str, queues: &[&str]) {
    let function = Function::open(address);
    for queue in queues {
        let Ok(number) = queue.parse() else { continue };
        let mut resets = 0;
        attack(&function, number, |act, outcome| match outcome {
            Ok(()) => resets += 1,
            Err(why) => println!("hostile {address} {queue}: {act}: {why}"),
        });
        // One line for all that is well: each byte is an exit to the VMM.
        println!("hostile {address} {queue}: {resets} resets");
    }
}
