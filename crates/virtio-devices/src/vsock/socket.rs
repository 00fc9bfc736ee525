// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Unix socket that host programs connect to, and those that the guest's connections lead to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::VsockError;

/// The longest path of a Unix socket: `sun_path` has 108 bytes, the last of which is zero.
const LONGEST_PATH: usize = 107;

/// How long the suffix of a guest's port can be: `_4294967295`.
const LONGEST_SUFFIX: usize = 11;

/// The socket that host programs connect to. Its name goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Which file it is: device and inode.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. A name that was left behind, to which nobody listens any more, is taken over.
    pub(crate) fn bind(path: &Path) -> Result<Self, VsockError> {
        let host = |source| VsockError::Socket { path: path.to_owned(), source };
        if path.as_os_str().len() > LONGEST_PATH - LONGEST_SUFFIX {
            return Err(VsockError::PathTooLong(path.to_owned()));
        }
        let socket = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
                if !is_socket {
                    return Err(VsockError::NotASocket(path.to_owned()));
                }
                match UnixStream::connect(path) {
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                        fs::remove_file(path).map_err(host)?;
                        UnixListener::bind(path).map_err(host)?
                    }
                    _ => return Err(VsockError::Busy(path.to_owned())),
                }
            }
            other => other.map_err(host)?,
        };
        socket.set_nonblocking(true).map_err(host)?;
        let file = identity(path);
        Ok(Self { socket, path: path.to_owned(), file })
    }

    /// The next host program that has connected, if there is one.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to the host program that listens for the guest's connections to `port`. Does not wait: one whose queue is full is as good as
    /// none.
    pub(crate) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(Path::new(&path))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(socket.into())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Unless somebody else has put another there meanwhile.
        if self.file.is_some() && identity(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}
