// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All connections of a guest: which packet belongs to which, and whose turn it is.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use vm_memory::GuestMemoryMmap;

use super::HOST_CID;
use super::connection::{Connection, Fate, Greeting, Handshake, Ports};
use super::header::{Header, Op, SIZE, STREAM};
use super::socket::Listener;
use crate::sys::scatter::Scatter;
use crate::{Chain, Events, Interest, RingError};

/// How many connections there can be at a time. With the buffer of each, it bounds what host programs that do not read make us keep.
const MAX_CONNECTIONS: usize = 1024;

/// How many host programs can be about to say which port they want.
const MAX_HANDSHAKES: usize = 64;

/// How many resets can wait for the guest to have room. A guest that sends more nonsense than it takes answers has to wait.
const MAX_RESETS: usize = 256;

/// The first of the ports that host programs seem to connect from, as in Firecracker.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The first token of a connection or handshake; those below are the device's.
pub(super) const FIRST_TOKEN: u64 = 16;

/// How many connections there can be in a process that may have `descriptors` open. Half of these are for the rest of it: a guest that connects as often as it can
/// must not keep it from opening anything else.
fn most_connections(descriptors: Option<u64>) -> usize {
    let half = descriptors.and_then(|descriptors| usize::try_from(descriptors / 2).ok());
    half.map_or(MAX_CONNECTIONS, |half| half.min(MAX_CONNECTIONS))
}

/// All connections.
pub(super) struct Muxer {
    guest_cid: u64,
    listener: Arc<Listener>,
    connections: BTreeMap<u64, Connection>,
    tokens: BTreeMap<Ports, u64>,
    handshakes: BTreeMap<u64, Handshake>,
    /// Those with something for the guest, in turn.
    ready: VecDeque<u64>,
    /// Which connections are to be reset, and the type that the guest has for each.
    resets: VecDeque<(Ports, u16)>,
    next_token: u64,
    next_port: u32,
    most: usize,
    scatter: Scatter,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, listener: Arc<Listener>) -> Self {
        Self {
            guest_cid,
            listener,
            connections: BTreeMap::new(),
            tokens: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_HOST_PORT,
            most: most_connections(getrlimit(Resource::Nofile).current),
            scatter: Scatter::new(),
        }
    }

    /// Whether another packet of the guest's can be dealt with: there is room for an answer.
    pub(super) fn can_take(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether the guest is to be told something.
    pub(super) fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// A packet of the guest's.
    pub(super) fn receive(
        &mut self,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        events: &Events,
    ) -> Result<(), RingError> {
        let mut bytes = [0; SIZE as usize];
        let malformed = |problem| Err(RingError::Malformed { head: chain.head(), problem });
        if chain.read(memory, 0, &mut bytes)? < bytes.len() {
            return malformed("has no whole packet header");
        }
        let header = Header::parse(&bytes);
        if header.length > chain.readable_len() - SIZE {
            return malformed("is shorter than its packet says");
        }
        if header.source_cid != self.guest_cid {
            // Nobody that could be answered.
            return Ok(());
        }
        let ports = Ports { guest: header.source_port, host: header.destination_port };
        if header.destination_cid != HOST_CID {
            return Ok(());
        }
        if header.kind != STREAM {
            // No such connection exists. The answer is of the same type: a guest looks whether it is its socket's (`virtio_transport_recv_pkt`, Linux 6.12,
            // `net/vmw_vsock/virtio_transport_common.c`), and may have a stream between the same ports.
            if header.op != Some(Op::Reset) {
                self.resets.push_back((ports, header.kind));
            }
            return Ok(());
        }
        let token = self.tokens.get(&ports).copied();
        if let Some(token) = token {
            if header.op == Some(Op::Reset) {
                self.remove(token);
            } else if let Some(connection) = self.connections.get_mut(&token) {
                let fate = connection.receive(&header, chain, memory, &mut self.scatter)?;
                self.settle(token, fate, events);
            }
            return Ok(());
        }
        match header.op {
            Some(Op::Reset) => {}
            Some(Op::Request) if self.connections.len() < self.most => {
                match self.listener.connect(ports.host) {
                    Ok(stream) => {
                        let connection = Connection::from_guest(ports, self.guest_cid, stream, &header);
                        self.insert(connection, events);
                    }
                    Err(_) => self.resets.push_back((ports, STREAM)),
                }
            }
            _ => self.resets.push_back((ports, STREAM)),
        }
        Ok(())
    }

    /// Puts the next packet into a buffer of the guest's, if there is one. Returns its length, header and all.
    pub(super) fn fill(
        &mut self,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        events: &Events,
    ) -> Result<Option<u32>, RingError> {
        if chain.readable_len() != 0 || chain.writable_len() <= SIZE {
            let problem = "has no room for a packet, or is not for writing";
            return Err(RingError::Malformed { head: chain.head(), problem });
        }
        loop {
            if let Some((ports, kind)) = self.resets.pop_front() {
                chain.write(memory, 0, &self.reset(ports, kind).bytes())?;
                return Ok(Some(SIZE));
            }
            let Some(token) = self.ready.pop_front() else { return Ok(None) };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.queued = false;
            let (fate, written) = connection.fill(chain, memory, &mut self.scatter)?;
            self.settle(token, fate, events);
            if written.is_some() {
                return Ok(written);
            }
        }
    }

    fn reset(&self, ports: Ports, kind: u16) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: ports.host,
            destination_port: ports.guest,
            length: 0,
            kind,
            op: Some(Op::Reset),
            flags: 0,
            buffer_size: 0,
            forwarded: 0,
        }
    }

    /// The socket that host programs connect to.
    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Host programs have connected.
    ///
    /// # Errors
    /// Why they have to wait: mostly, the process or the host has no descriptor left.
    pub(super) fn accept(&mut self, events: &Events) -> io::Result<()> {
        // As many as can wait at once; others get their turn in the next round.
        for _ in 0..MAX_HANDSHAKES {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            };
            if self.handshakes.len() >= MAX_HANDSHAKES {
                // Whoever has been silent for longest.
                self.handshakes.pop_first();
            }
            let token = self.new_token();
            self.greet(token, Handshake::new(stream), events);
        }
        Ok(())
    }

    /// The stream of a connection or a handshake is ready.
    pub(super) fn ready(&mut self, token: u64, events: &Events) {
        if let Some(handshake) = self.handshakes.remove(&token) {
            self.greet(token, handshake, events);
        } else if let Some(connection) = self.connections.get_mut(&token) {
            let fate = connection.ready();
            self.settle(token, fate, events);
        }
    }

    fn greet(&mut self, token: u64, handshake: Handshake, events: &Events) {
        match handshake.read() {
            Greeting::Incomplete(handshake) => {
                // It may be listened to already.
                let listening = events
                    .modify(handshake.stream(), token, Interest::Read)
                    .or_else(|_| events.add(handshake.stream(), token, Interest::Read));
                if listening.is_ok() {
                    self.handshakes.insert(token, handshake);
                }
            }
            Greeting::Connect(stream, guest) => {
                // It comes back under the connection's own token.
                let _ = events.remove(&stream);
                if self.connections.len() < self.most {
                    let ports = Ports { guest, host: self.new_port(guest) };
                    self.insert(Connection::from_host(ports, self.guest_cid, stream), events);
                }
            }
            Greeting::Refused => {}
        }
    }

    fn insert(&mut self, connection: Connection, events: &Events) {
        let token = self.new_token();
        self.tokens.insert(connection.ports(), token);
        self.connections.insert(token, connection);
        self.settle(token, Fate::Lives, events);
    }

    /// What follows from a step of a connection's.
    fn settle(&mut self, token: u64, fate: Fate, events: &Events) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let fate = if fate == Fate::Lives { connection.listen(token, events) } else { fate };
        if fate == Fate::Reset {
            self.resets.push_back((connection.ports(), STREAM));
            self.remove(token);
        } else if connection.has_something() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    fn remove(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            self.tokens.remove(&connection.ports());
        }
        // It may still be in `ready`, which finds nothing then: no token is given twice.
    }

    fn new_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// A port that no other connection to the guest's `guest` seems to come from.
    fn new_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port =
                self.next_port.checked_add(1).filter(|&port| port != u32::MAX).unwrap_or(FIRST_HOST_PORT);
            if !self.tokens.contains_key(&Ports { guest, host }) {
                return host;
            }
        }
    }

    /// There can be so many connections.
    #[cfg(test)]
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// How many connections there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_half_of_the_descriptors_to_others() {
        for (descriptors, most) in
            [(Some(256), 128), (Some(1024), 512), (Some(2050), 1024), (Some(u64::MAX), 1024), (None, 1024)]
        {
            assert_eq!(most_connections(descriptors), most);
        }
    }

    #[test]
    fn ports_that_host_programs_seem_to_come_from_go_round_and_leave_out_those_in_use() {
        let path = std::env::temp_dir().join(format!("vsock-ports-{}", std::process::id()));
        let mut muxer = Muxer::new(3, Arc::new(Listener::bind(&path).unwrap()));
        assert_eq!([muxer.new_port(7), muxer.new_port(8)], [FIRST_HOST_PORT, FIRST_HOST_PORT + 1]);
        muxer.tokens.insert(Ports { guest: 7, host: FIRST_HOST_PORT }, FIRST_TOKEN);
        // The highest is anybody's.
        muxer.next_port = u32::MAX - 1;
        let ports = [7, 7, 8].map(|guest| muxer.new_port(guest));
        assert_eq!(ports, [u32::MAX - 1, FIRST_HOST_PORT + 1, FIRST_HOST_PORT + 2]);
        muxer.next_port = FIRST_HOST_PORT;
        assert_eq!(muxer.new_port(8), FIRST_HOST_PORT, "another port of the guest's has it");
    }
}
