// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `readv`, `writev` and `sendmsg` straight from and into the guest's memory.

use std::borrow::Borrow;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions};

use crate::Segment;

/// Room for a list of buffers, used again for call after call: it is empty between them.
#[derive(Default)]
pub(crate) struct Scatter {
    vectors: Vec<libc::iovec>,
}

// SAFETY: the pointers in it are made and used within one call of a method here, which has the memory borrowed; between calls there are
// none.
unsafe impl Send for Scatter {}

impl Scatter {
    /// No room yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Reads from `fd` into the first `limit` bytes of `segments`, in order, and what is more than that into `tail`.
    ///
    /// # Errors
    /// The host's; `EFAULT` for a segment that is not in `memory`.
    pub(crate) fn read(
        &mut self,
        fd: impl AsFd,
        memory: &GuestMemoryMmap,
        segments: impl IntoIterator<Item: Borrow<Segment>>,
        tail: &mut [u8],
    ) -> io::Result<usize> {
        self.fill(memory, segments, Permissions::Write)?;
        if !tail.is_empty() {
            self.vectors.push(libc::iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: tail.len() });
        }
        let fd = fd.as_fd().as_raw_fd();
        let count = self.count();
        let result = retry(|| {
            // SAFETY: the vectors name parts of `memory` and of `tail`, which are borrowed beyond the call. Others see guest memory
            // change under them, which it does for them at any time: all of it is accessed as volatile. `tail` is borrowed exclusively.
            unsafe { libc::readv(fd, self.vectors.as_ptr(), count) }
        });
        self.vectors.clear();
        result
    }

    /// Writes `segments`, in order, to `fd`.
    ///
    /// # Errors
    /// The host's; `EFAULT` for a segment that is not in `memory`.
    pub(crate) fn write(
        &mut self,
        fd: impl AsFd,
        memory: &GuestMemoryMmap,
        segments: impl IntoIterator<Item: Borrow<Segment>>,
    ) -> io::Result<usize> {
        self.fill(memory, segments, Permissions::Read)?;
        let fd = fd.as_fd().as_raw_fd();
        let count = self.count();
        let result = retry(|| {
            // SAFETY: the vectors name parts of `memory`, which is borrowed beyond the call; the kernel only reads them.
            unsafe { libc::writev(fd, self.vectors.as_ptr(), count) }
        });
        self.vectors.clear();
        result
    }

    /// Sends `segments`, in order, on the stream socket `socket`, without blocking and without a `SIGPIPE`.
    ///
    /// # Errors
    /// The host's; `EFAULT` for a segment that is not in `memory`.
    pub(crate) fn send(
        &mut self,
        socket: impl AsFd,
        memory: &GuestMemoryMmap,
        segments: impl IntoIterator<Item: Borrow<Segment>>,
    ) -> io::Result<usize> {
        self.fill(memory, segments, Permissions::Read)?;
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: all of a msghdr's fields may be zero: no name, no control data, no flags.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_mut_ptr();
        #[allow(clippy::useless_conversion, reason = "the field's type is not the same in all C libraries")]
        {
            message.msg_iovlen = self.vectors.len().try_into().map_err(io::Error::other)?;
        }
        let result = retry(|| {
            // SAFETY: the vectors that `message` points to name parts of `memory`; both are borrowed beyond the call, and the kernel only
            // reads them.
            unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
        });
        self.vectors.clear();
        result
    }

    /// Names the segments.
    fn fill(
        &mut self,
        memory: &GuestMemoryMmap,
        segments: impl IntoIterator<Item: Borrow<Segment>>,
        access: Permissions,
    ) -> io::Result<()> {
        // A call that has failed here may have left some.
        self.vectors.clear();
        for segment in segments {
            let segment = segment.borrow();
            let outside = |_| io::Error::from_raw_os_error(libc::EFAULT);
            let slices =
                memory.get_slices(segment.address, segment.length as usize, access).map_err(outside)?;
            for slice in slices {
                let slice = slice.map_err(outside)?;
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                self.vectors.push(libc::iovec { iov_base, iov_len: slice.len() });
            }
        }
        Ok(())
    }

    /// The count as the calls take it. One that does not fit is refused by the kernel, as any above `IOV_MAX` is.
    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.vectors.len()).unwrap_or(libc::c_int::MAX)
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(done) => return Ok(done),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn memory() -> GuestMemoryMmap {
        // Two regions that touch: a segment across them is two pieces of the host's address space.
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap()
    }

    #[test]
    fn bytes_go_where_the_segments_say() {
        let memory = memory();
        let segments = [
            Segment { address: GuestAddress(0xffc), length: 8 },
            Segment { address: GuestAddress(0x10), length: 2 },
        ];
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"abcdefghijKLM").unwrap();
        let mut tail = [0; 8];
        let mut scatter = Scatter::new();
        assert_eq!(scatter.read(&far, &memory, segments, &mut tail).unwrap(), 13);
        let mut seen = [0; 8];
        memory.read_slice(&mut seen, GuestAddress(0xffc)).unwrap();
        assert_eq!(&seen, b"abcdefgh");
        assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0x10)).unwrap(), *b"ij");
        assert_eq!(&tail, b"KLM\0\0\0\0\0");

        assert_eq!(scatter.write(&far, &memory, segments).unwrap(), 10);
        assert_eq!(scatter.send(&far, &memory, &segments[1..]).unwrap(), 2);
        let mut back = [0; 12];
        near.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"abcdefghijij");
    }

    #[test]
    fn what_is_not_memory_reaches_no_system_call() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let inside = Segment { address: GuestAddress(0x20), length: 2 };
        let outside = [inside, Segment { address: GuestAddress(0x1ffc), length: 8 }];
        let memory = memory();
        let mut scatter = Scatter::new();
        let refused = |result: io::Result<usize>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        };
        // Nor does it reach the next one.
        near.write_all(b"0123456789").unwrap();
        refused(scatter.read(&far, &memory, outside, &mut []));
        assert_eq!(scatter.read(&far, &memory, [inside], &mut []).unwrap(), 2);
        refused(scatter.write(&far, &memory, outside));
        assert_eq!(scatter.write(&far, &memory, [inside]).unwrap(), 2);
        refused(scatter.send(&far, &memory, outside));
        assert_eq!(scatter.send(&far, &memory, [inside]).unwrap(), 2);
    }

    #[test]
    fn a_socket_that_takes_no_more_is_not_waited_for() {
        let (_near, far) = UnixStream::pair().unwrap();
        let segments = [Segment { address: GuestAddress(0), length: 0x2000 }];
        let (memory, mut scatter) = (memory(), Scatter::new());
        let full = loop {
            if let Err(error) = scatter.send(&far, &memory, segments) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_closed_socket_is_an_error_and_no_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        let segments = [Segment { address: GuestAddress(0), length: 8 }];
        let error = Scatter::new().send(&far, &memory(), segments).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    }
}
