// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: HTTP with JSON over a Unix socket, as Firecracker and Cloud Hypervisor have it, so that `curl --unix-socket` and what reads Prometheus'
//! metrics need nothing new. docs/control.md lists the requests.
//!
//! Requests are served by a thread of their own, one at a time: what takes long, such as mapping memory for a device, must not keep the event loop from
//! resampling a line.

mod api;
pub mod client;
mod http;
pub mod irqs;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

pub(crate) use api::Machine;
pub use api::{DeviceState, RunState, VmState};
use http::{HttpError, Request};

use crate::error::{Error, Result};

/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket that a machine is controlled by. Dropping it closes and removes it.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    current: Arc<Current>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// The machine that runs now: a guest that resets itself gets a new one.
#[derive(Default)]
struct Current(Mutex<Option<Box<dyn Machine>>>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").finish_non_exhaustive()
    }
}

impl Current {
    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Machine>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While this is there, requests go to a machine. Dropping it waits for the one that is under way.
#[derive(Debug)]
pub(crate) struct Attached(Arc<Current>);

impl Drop for Attached {
    fn drop(&mut self) {
        let machine = self.0.lock().take();
        drop(machine);
    }
}

/// Where machines that have a name rather than a path have their sockets.
#[must_use]
pub fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(own) if !rustix::process::geteuid().is_root() => PathBuf::from(own),
        _ => PathBuf::from("/run"),
    }
    .join("doorbell")
}

/// The socket that `vm` means: a path if it has a slash, or else the name of a machine.
#[must_use]
pub fn socket_of(vm: &Path) -> PathBuf {
    if vm.as_os_str().as_encoded_bytes().contains(&b'/') {
        return vm.to_owned();
    }
    let mut file = vm.as_os_str().to_owned();
    file.push(".sock");
    directory().join(file)
}

impl Control {
    /// Makes the socket and answers there. For its owner only.
    pub(crate) fn listen(vm: &Path) -> Result<Self> {
        let path = socket_of(vm);
        let failed = || Error::usage(format!("cannot make the control socket {}", path.display()));
        if path != vm {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory())
                .map_err(|e| failed().because(e).hint("name a path with --control"))?;
        }
        remove_what_nobody_serves(&path)?;
        let listener = UnixListener::bind(&path).map_err(|e| failed().because(e).hint("check --control"))?;
        let current = Arc::new(Current::default());
        let stop = eventfd(0, EventfdFlags::CLOEXEC);
        let stop = Arc::new(stop.map_err(|e| Error::host("cannot make an eventfd").because(e))?);
        let mut this = Self { path: path.clone(), current, stop, thread: None };
        let restricted = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
        restricted.map_err(|e| failed().because(e))?;
        let (current, stop) = (Arc::clone(&this.current), Arc::clone(&this.stop));
        let serve = move || serve(&listener, &current, &stop);
        let thread = thread::Builder::new().name("control".into()).spawn(serve);
        this.thread = Some(thread.map_err(|e| Error::host("cannot start a thread").because(e))?);
        Ok(this)
    }

    /// From now on, requests go to `machine`.
    pub(crate) fn attach(&self, machine: Box<dyn Machine>) -> Attached {
        *self.current.lock() = Some(machine);
        Attached(Arc::clone(&self.current))
    }

    /// Removes the socket, for a process that ends without more ado.
    pub(crate) fn remove_socket(&self) {
        // Somebody else may have done so.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.remove_socket();
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A socket stays behind when its process is killed. One that answers is somebody else's.
fn remove_what_nobody_serves(path: &Path) -> Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::usage(format!("another machine is controlled by {}", path.display()))
            .hint("give --control another name or path; `doorbell ps` lists those that run")),
        // As a file that is no socket is answered, too.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => fs::remove_file(path)
            .map_err(|e| {
                Error::usage(format!(
                    "cannot remove the control socket {} of a machine that is gone",
                    path.display()
                ))
                .because(e)
            }),
        // Nothing there, or something that binding says what it is.
        Err(_) => Ok(()),
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn serve(listener: &UnixListener, current: &Current, stop: &OwnedFd) {
    loop {
        let mut events = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut events, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return tracing::error!("the control socket is not served any more: {e}"),
        }
        let [listening, stopping] = events;
        if !stopping.revents().is_empty() {
            return;
        }
        if listening.revents().is_empty() {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => converse(stream, current),
            // The client has gone again, or there is no descriptor left for now.
            Err(e) => {
                tracing::warn!("a control connection cannot be taken: {e}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// One request, one answer.
fn converse(mut stream: UnixStream, current: &Current) {
    let answer = match http::read_request(&mut stream, PATIENCE) {
        Ok(request) => answer(&request, current),
        // Who only looks whether somebody is there says nothing, and wants no answer.
        Err(HttpError::Short | HttpError::Io(_)) => return,
        Err(e) => api::refuse(400, &e.to_string()),
    };
    let _ = stream.set_write_timeout(Some(PATIENCE));
    // Whoever does not wait for the answer does not want it.
    let _ = http::write_answer(&mut stream, &answer);
}

fn answer(request: &Request, current: &Current) -> http::Answer {
    tracing::debug!("control: {} {}", request.method, request.path);
    api::answer(request, current.lock().as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn requests_reach_the_machine_that_is_attached_and_the_socket_goes_with_its_owner() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("vm.sock");
        let control = Control::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = client::state(&path).unwrap_err();
        assert!(error.one_line().contains("started again"), "{}", error.one_line());
        let attached = control.attach(Box::new(api::tests::Noted::default()));
        assert_eq!(client::state(&path).unwrap(), api::tests::state());
        drop(attached);
        client::state(&path).unwrap_err();
        drop(control);
        assert!(!path.exists());
        let error = client::state(&path).unwrap_err().one_line();
        assert!(error.contains("no machine") && error.contains("doorbell ps"), "{error}");
    }

    #[test]
    fn a_socket_that_is_served_is_left_alone_and_one_that_is_not_is_replaced() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("vm.sock");
        let first = Control::listen(&path).unwrap();
        let error = Control::listen(&path).unwrap_err().one_line();
        assert!(error.contains("another machine"), "{error}");
        client::state(&path).unwrap_err();
        drop(first);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Control::listen(&path).unwrap());
        fs::write(&path, "").unwrap();
        let error = Control::listen(&path).unwrap_err().one_line();
        assert!(error.contains("vm.sock") && error.contains("in use"), "{error}");
        assert!(path.exists(), "somebody's file");
    }

    #[test]
    fn who_talks_nonsense_is_told_and_keeps_nobody_else_from_talking() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("vm.sock");
        let control = Control::listen(&path).unwrap();
        let _attached = control.attach(Box::new(api::tests::Noted::default()));
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"let me in\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("not HTTP"), "{text}");
        drop(UnixStream::connect(&path).unwrap());
        client::state(&path).unwrap();
    }

    #[test]
    fn a_name_is_a_socket_in_a_directory_of_ours_and_a_path_is_a_path() {
        assert_eq!(socket_of(Path::new("./web")), Path::new("./web"));
        assert_eq!(socket_of(Path::new("/a/b")), Path::new("/a/b"));
        assert_eq!(socket_of(Path::new("web")), directory().join("web.sock"));
    }
}
