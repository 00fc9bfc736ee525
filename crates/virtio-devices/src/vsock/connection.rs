// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection between a port of the guest and a program of the host.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vm_memory::GuestMemoryMmap;

use super::credit::{BUFFER_SIZE, Credit};
use super::header::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, SIZE, STREAM};
use super::{HOST_CID, limited};
use crate::sys::scatter::Scatter;
use crate::{Chain, Events, Interest, RingError};

/// How many pieces a call to the host is given at most.
const PIECES: usize = 256;

/// The longest packet to the guest: what Linux sends at most (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
const LONGEST_DATA: u32 = 64 << 10;

/// How a step has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest does not know.
    Reset,
}

/// Which ports it is between: the guest's, and the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// What is to be said to the guest, beside data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Unsaid {
    request: bool,
    response: bool,
    credit: bool,
    shutdown: u32,
}

/// A connection.
pub(super) struct Connection {
    ports: Ports,
    guest_cid: u64,
    stream: UnixStream,
    credit: Credit,
    /// Both ends know of it.
    established: bool,
    /// What the host program has not taken yet: at most [`BUFFER_SIZE`] bytes, since the guest may not send more.
    pending: VecDeque<u8>,
    unsaid: Unsaid,
    /// What the guest has been told of: `SHUTDOWN_` flags.
    said_shutdown: u32,
    /// What the guest has told: `SHUTDOWN_` flags.
    heard_shutdown: u32,
    /// The stream may have data.
    readable: bool,
    /// The host program sends no more.
    at_end: bool,
    /// It is not even there any more.
    hung_up: bool,
    /// The guest was asked for its credit since it last told anything new of it.
    asked: bool,
    /// What is waited for on the stream.
    listening: Option<Interest>,
    /// It is in the queue of those with something for the guest.
    pub(super) queued: bool,
}

impl Connection {
    /// The guest has asked for it: it is going to be answered.
    pub(super) fn from_guest(ports: Ports, guest_cid: u64, stream: UnixStream, request: &Header) -> Self {
        let mut this = Self::new(ports, guest_cid, stream);
        this.established = true;
        this.unsaid.response = true;
        this.credit.hear(request.buffer_size, request.forwarded);
        this
    }

    /// A host program has asked for it: so is the guest, now.
    pub(super) fn from_host(ports: Ports, guest_cid: u64, stream: UnixStream) -> Self {
        let mut this = Self::new(ports, guest_cid, stream);
        this.unsaid.request = true;
        this
    }

    fn new(ports: Ports, guest_cid: u64, stream: UnixStream) -> Self {
        Self {
            ports,
            guest_cid,
            stream,
            credit: Credit::default(),
            established: false,
            pending: VecDeque::new(),
            unsaid: Unsaid::default(),
            said_shutdown: 0,
            heard_shutdown: 0,
            readable: false,
            at_end: false,
            hung_up: false,
            asked: false,
            listening: None,
            queued: false,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// A packet of the guest's on this connection; its data is in `chain`, behind the header.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        scatter: &mut Scatter,
    ) -> Result<Fate, RingError> {
        // A guest that has answered "no room" tells by itself when it has some, as Linux does. Asking it again at once would get the same
        // answer, and so on, for as long as its program does not read.
        if self.credit.hear(header.buffer_size, header.forwarded) {
            self.asked = false;
        }
        match header.op {
            Some(Op::Response) if !self.established => {
                self.established = true;
                let answer = format!("OK {}\n", self.ports.host);
                // Into an empty socket it fits.
                match self.stream.write(answer.as_bytes()) {
                    Ok(length) if length == answer.len() => {}
                    _ => return Ok(Fate::Reset),
                }
            }
            Some(Op::Data) if self.established && self.heard_shutdown & SHUTDOWN_SEND == 0 => {
                if !self.credit.receive(header.length) {
                    return Ok(Fate::Reset);
                }
                return self.take_data(header.length, chain, memory, scatter);
            }
            Some(Op::Shutdown) if self.established => {
                self.heard_shutdown |= header.flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
                if self.heard_shutdown & SHUTDOWN_RECEIVE != 0 {
                    self.readable = false;
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                return Ok(self.flushed());
            }
            Some(Op::CreditUpdate) if self.established => {}
            Some(Op::CreditRequest) if self.established => self.unsaid.credit = true,
            _ => return Ok(Fate::Reset),
        }
        Ok(Fate::Lives)
    }

    /// Hands `length` bytes on, straight from the guest's memory; what the host program does not take now is kept.
    fn take_data(
        &mut self,
        length: u32,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        scatter: &mut Scatter,
    ) -> Result<Fate, RingError> {
        let mut done = 0;
        if self.pending.is_empty() && length > 0 {
            let data = limited(chain.readable_from(SIZE), length).take(PIECES);
            match scatter.send(&self.stream, memory, data) {
                Ok(sent) => done = u32::try_from(sent).unwrap_or(length),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The host program is gone.
                Err(_) => return Ok(Fate::Reset),
            }
            self.credit.forward(done);
        }
        if done < length {
            let mut rest = vec![0; (length - done) as usize];
            let got = chain.read(memory, SIZE + done, &mut rest)?;
            rest.truncate(got);
            self.pending.extend(rest);
        }
        Ok(Fate::Lives)
    }

    /// The stream is ready for what was waited for.
    pub(super) fn ready(&mut self) -> Fate {
        match self.listening {
            Some(Interest::Read | Interest::Both) => self.readable = true,
            // Only a hang-up is reported then.
            Some(Interest::Nothing) => {
                self.hung_up = true;
                self.unsaid.shutdown = (SHUTDOWN_RECEIVE | SHUTDOWN_SEND) & !self.said_shutdown;
            }
            Some(Interest::Write) | None => {}
        }
        while !self.pending.is_empty() {
            match self.stream.write(self.pending.as_slices().0) {
                Ok(written) => {
                    self.pending.drain(..written);
                    self.credit.forward(u32::try_from(written).unwrap_or(u32::MAX));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Reset,
            }
        }
        if self.pending.is_empty() {
            // It may have been long, and may never be needed again.
            self.pending = VecDeque::new();
        }
        self.flushed()
    }

    /// What the guest has shut down takes effect when all that it sent before has gone on.
    fn flushed(&self) -> Fate {
        if !self.pending.is_empty() {
            return Fate::Lives;
        }
        if self.heard_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
            // A reset is the answer to a guest that is done with a connection (section 5.10.6.5).
            return Fate::Reset;
        }
        if self.heard_shutdown & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Fate::Lives
    }

    fn may_read(&self) -> bool {
        self.established && !self.at_end && self.heard_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Whether there is something to tell the guest.
    pub(super) fn has_something(&self) -> bool {
        let Unsaid { request, response, credit, shutdown } = self.unsaid;
        // Who was asked for credit has none, until it tells something new.
        let data = self.readable && self.may_read() && !self.asked;
        request || response || credit || shutdown != 0 || data || self.credit.worth_telling()
    }

    /// Puts the next packet into a buffer of the guest's. Returns how long it is with its header, or nothing if there was none after all.
    pub(super) fn fill(
        &mut self,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        scatter: &mut Scatter,
    ) -> Result<(Fate, Option<u32>), RingError> {
        let unsaid = self.unsaid;
        let mut data = 0;
        let mut flags = 0;
        let op = if unsaid.request {
            self.unsaid.request = false;
            Op::Request
        } else if unsaid.response {
            self.unsaid.response = false;
            Op::Response
        } else if self.readable && self.may_read() && self.credit.room() > 0 {
            let room = self.credit.room().min(chain.writable_len() - SIZE).min(LONGEST_DATA);
            let buffers = limited(chain.writable_from(SIZE), room).take(PIECES);
            match scatter.read(&self.stream, memory, buffers, &mut []) {
                Ok(0) => {
                    self.readable = false;
                    self.at_end = true;
                    self.unsaid.shutdown |= SHUTDOWN_SEND & !self.said_shutdown;
                    return Ok((Fate::Lives, None));
                }
                Ok(length) => {
                    data = u32::try_from(length).unwrap_or(room);
                    self.credit.send(data);
                    Op::Data
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok((Fate::Lives, None));
                }
                Err(_) => return Ok((Fate::Reset, None)),
            }
        } else if unsaid.shutdown != 0 {
            flags = unsaid.shutdown | self.said_shutdown;
            self.said_shutdown = flags;
            self.unsaid.shutdown = 0;
            Op::Shutdown
        } else if unsaid.credit || self.credit.worth_telling() {
            self.unsaid.credit = false;
            Op::CreditUpdate
        } else if self.readable && self.may_read() && !self.asked {
            self.asked = true;
            Op::CreditRequest
        } else {
            return Ok((Fate::Lives, None));
        };
        let header = Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: self.ports.host,
            destination_port: self.ports.guest,
            length: data,
            kind: STREAM,
            op: Some(op),
            flags,
            buffer_size: BUFFER_SIZE,
            forwarded: self.credit.tell(),
        };
        chain.write(memory, 0, &header.bytes())?;
        Ok((Fate::Lives, Some(SIZE + data)))
    }

    /// Waits on the stream for what can be used: never for something that would be reported again and again.
    pub(super) fn listen(&mut self, token: u64, events: &Events) -> Fate {
        let read = self.may_read() && !self.readable;
        let write = !self.pending.is_empty();
        let wanted = match (read, write) {
            (true, true) => Some(Interest::Both),
            (true, false) => Some(Interest::Read),
            (false, true) => Some(Interest::Write),
            // Half closed, from either side: the other half goes with a hang-up.
            (false, false) if self.established && !self.may_read() && !self.hung_up => {
                Some(Interest::Nothing)
            }
            (false, false) => None,
        };
        if wanted == self.listening {
            return Fate::Lives;
        }
        let done = match (self.listening, wanted) {
            (None, Some(interest)) => events.add(&self.stream, token, interest),
            (Some(_), Some(interest)) => events.modify(&self.stream, token, interest),
            (_, None) => events.remove(&self.stream),
        };
        self.listening = wanted;
        if done.is_ok() { Fate::Lives } else { Fate::Reset }
    }
}

/// The line that a host program begins with: `CONNECT PORT`, the guest's, and a newline.
pub(super) struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

/// How far it is.
pub(super) enum Greeting {
    /// More is to come.
    Incomplete(Handshake),
    /// It wants to be connected to this port of the guest.
    Connect(UnixStream, u32),
    /// It is gone, or has said something else.
    Refused,
}

impl Handshake {
    /// The longest line, generously: `connect 4294967295` and a newline.
    const LONGEST: usize = 32;

    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::new() }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads on: byte by byte, since what follows the line is the guest's.
    pub(super) fn read(mut self) -> Greeting {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Greeting::Refused,
                Ok(_) if byte == *b"\n" => {
                    return match port(&self.line) {
                        Some(port) => Greeting::Connect(self.stream, port),
                        None => Greeting::Refused,
                    };
                }
                Ok(_) if self.line.len() == Self::LONGEST => return Greeting::Refused,
                Ok(_) => self.line.extend(byte),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Greeting::Incomplete(self),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Greeting::Refused,
            }
        }
    }
}

/// The port in a `CONNECT` line.
fn port(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (command, port) = (words.next()?, words.next()?);
    let digits = port.bytes().all(|digit| digit.is_ascii_digit());
    let whole = command.eq_ignore_ascii_case("connect") && digits && words.next().is_none();
    // VMADDR_PORT_ANY is nobody's.
    if whole { port.parse().ok().filter(|&port| port != u32::MAX) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_connect_and_lines_that_do_not() {
        for (line, wanted) in [
            ("CONNECT 52", Some(52)),
            ("connect 0", Some(0)),
            ("CONNECT 4294967294\r", Some(4_294_967_294)),
            ("CONNECT 4294967295", None),
            ("CONNECT 4294967296", None),
            ("CONNECT -1", None),
            ("CONNECT +1", None),
            ("CONNECT", None),
            ("CONNECT 1 2", None),
            ("CONNECTED 1", None),
            ("", None),
            ("\u{fffd}", None),
        ] {
            assert_eq!(port(line.as_bytes()), wanted, "{line:?}");
        }
    }
}
