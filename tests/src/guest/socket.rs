// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side of a guest's sockets: asking for a port, and having bytes given back.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

/// Asks for a port of the guest's over a new connection to the VMM's socket. Returns the answer: "OK ..." when the guest listens.
///
/// # Errors
/// If there is none. Connections that the guest refuses are closed.
///
/// # Panics
/// If the VMM has gone.
pub fn ask(stream: &mut UnixStream, port: u32) -> io::Result<String> {
    writeln!(stream, "CONNECT {port}").unwrap();
    let mut answer = String::new();
    // Byte by byte, so that nothing of what follows is taken along.
    BufReader::with_capacity(1, stream).read_line(&mut answer)?;
    Ok(answer)
}

/// Sends bytes to the guest, which gives them back, and compares. `done` says to the guest that these were all.
///
/// # Panics
/// If something else comes back.
pub fn there_and_back(
    mut reader: impl Read,
    mut writer: impl Write + Send + 'static,
    bytes: &[u8],
    done: impl FnOnce() + Send + 'static,
) {
    let sent = bytes.to_vec();
    let sender = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        done();
    });
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == bytes, "{} of {} bytes, or other ones, came back", back.len(), bytes.len());
}
