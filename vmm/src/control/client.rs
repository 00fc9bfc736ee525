// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other end of the control socket: `doorbell ps`, `doorbell pause web` and the like.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::api::{DeviceName, DeviceState, RunState, VmState, escape};
use super::http::{Request, read_answer, write_request};
use super::{directory, socket_of};
use crate::balloon::{BalloonState, GuestMemory};
use crate::cli::{DeviceCommand, VmCommand};
use crate::error::{Error, Result};
use crate::size::Size;
use crate::status::Status;

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Asks the machine called `vm`, and reads its answer as `T`.
///
/// # Errors
/// If it is not there, or refuses.
pub(crate) fn ask<T: DeserializeOwned>(vm: &Path, method: &str, path: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(&ask_text(vm, method, path, body)?)
        .map_err(|e| Error::failure(format!("cannot read the answer of {}", vm.display())).because(e))
}

/// The same for an answer that is no JSON.
pub(crate) fn ask_text(vm: &Path, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
    let socket = socket_of(vm);
    let broken = || Error::failure(format!("cannot talk to {}", socket.display()));
    let mut stream = UnixStream::connect(&socket).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Error::usage(format!("no machine is controlled by {}", socket.display()))
                .hint("start one with --control, or see which there are: `doorbell ps`")
        }
        _ => Error::host(format!("cannot reach {}", socket.display())).because(e),
    })?;
    let request = Request { method: method.to_owned(), path: path.to_owned(), body: body.to_vec() };
    write_request(&mut stream, &request).map_err(|e| broken().because(e))?;
    match read_answer(&mut stream).map_err(|e| broken().because(e))? {
        (200..300, body) => Ok(body),
        (status, body) => {
            let text = serde_json::from_slice(&body)
                .map_or_else(|_| format!("{} answers {status}", socket.display()), |Refusal { error }| error);
            Err(match status {
                400..409 => Error::usage(text),
                409 => Error::host(text),
                _ => Error::failure(text),
            })
        }
    }
}

/// What the machine called `vm` is like.
///
/// # Errors
/// If it is not there, or refuses.
pub fn state(vm: &Path) -> Result<VmState> {
    ask(vm, "GET", "/vm", &[])
}

fn nothing(vm: &Path, method: &str, path: &str, body: &[u8]) -> Result<u8> {
    let serde_json::Map { .. } = ask(vm, method, path, body)?;
    Ok(Status::PowerOff.code())
}

/// Does it. Returns the exit status.
///
/// # Errors
/// If it cannot be done; the error has the exit status.
pub fn vm_command(command: &VmCommand) -> Result<u8> {
    match command {
        VmCommand::Pause { vm } => nothing(vm, "PUT", "/vm/pause", &[]),
        VmCommand::Resume { vm } => nothing(vm, "PUT", "/vm/resume", &[]),
        VmCommand::Shutdown { vm } => nothing(vm, "PUT", "/vm/shutdown", &[]),
        VmCommand::Kill { vm } => nothing(vm, "PUT", "/vm/kill", &[]),
        VmCommand::Balloon { vm, size: Some(Size(size)), .. } => {
            nothing(vm, "PUT", "/balloon", serde_json::json!({ "size": size }).to_string().as_bytes())
        }
        VmCommand::Balloon { vm, size: None, json } => {
            let state: BalloonState = ask(vm, "GET", "/balloon", &[])?;
            print(&if *json { to_json(&state) } else { balloon_table(&state) });
            Ok(Status::PowerOff.code())
        }
    }
}

fn balloon_table(state: &BalloonState) -> String {
    let size = |bytes: u64| Size(bytes).to_string();
    let GuestMemory { free, available, .. } = state.stats.unwrap_or_default();
    let [free, available] = [free, available].map(|bytes| bytes.map_or_else(|| "-".to_owned(), size));
    let row = [size(state.target), size(state.actual), size(state.memory), free, available];
    let mut text = table(["TARGET", "ACTUAL", "MEMORY", "FREE", "AVAILABLE"], vec![row]);
    if let Some(failure) = &state.failure {
        text += &format!("the host has not taken all of it: {failure}\n");
    }
    text
}

/// How often is looked whether the guest has released a device.
const LOOK: Duration = Duration::from_millis(50);

/// Adds, removes, lists devices. Returns the exit status.
///
/// # Errors
/// If it cannot be done; the error has the exit status.
pub fn device_command(command: &DeviceCommand) -> Result<u8> {
    let devices = |vm: &Path| ask::<Vec<DeviceState>>(vm, "GET", "/devices", &[]);
    match command {
        DeviceCommand::List { vm, json } => {
            let devices = devices(vm)?;
            print(&if *json { to_json(&devices) } else { device_table(&devices) });
            Ok(Status::PowerOff.code())
        }
        DeviceCommand::Add { vm, device, disk, net } => {
            let body = match (device, disk, net) {
                (Some(device), ..) => serde_json::json!({ "vfio": device }),
                (_, Some(disk), _) => serde_json::json!({ "disk": absolute(disk)? }),
                (.., net) => serde_json::json!({ "net": net }),
            };
            let DeviceName { name } = ask(vm, "POST", "/devices", body.to_string().as_bytes())?;
            print(&format!("{name}\n"));
            Ok(Status::PowerOff.code())
        }
        DeviceCommand::Remove { vm, name, timeout } => {
            let DeviceName { name } = &ask(vm, "DELETE", &format!("/devices/{}", escape(name)), &[])?;
            let end = Instant::now() + Duration::from_secs((*timeout).into());
            while devices(vm)?.iter().any(|device| device.name == *name) {
                if Instant::now() > end {
                    return Err(Error::guest(format!(
                        "the guest has not released {name} within {timeout} s"
                    ))
                    .hint("it may still do so: see whether it has a driver for PCIe hot-plug (pciehp)"));
                }
                thread::sleep(LOOK);
            }
            Ok(Status::PowerOff.code())
        }
    }
}

/// The description of a disk with its path as the machine, which may be somewhere else, finds it.
fn absolute(disk: &str) -> Result<String> {
    // Commas inside a value are written twice.
    let parts = disk.replace(",,", "\0");
    let parts = parts.split(',').map(|part| match part.strip_prefix("path=") {
        Some(path) if !path.is_empty() => std::path::absolute(path.replace('\0', ","))
            .map(|path| format!("path={}", path.display()).replace(',', ",,"))
            .map_err(|e| Error::usage(format!("cannot find out where {path} is")).because(e)),
        _ => Ok(part.replace('\0', ",,")),
    });
    Ok(parts.collect::<Result<Vec<_>>>()?.join(","))
}

fn device_table(devices: &[DeviceState]) -> String {
    let rows = devices.iter().map(|device| {
        let host = device.host.clone().unwrap_or_default();
        let removable = if device.removable { "yes" } else { "no" };
        [device.name.clone(), device.kind.clone(), device.address.clone(), host, removable.to_owned()]
    });
    table(["NAME", "KIND", "GUEST", "HOST", "REMOVABLE"], rows.collect())
}

/// A machine that has a socket, and what it says.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    socket: PathBuf,
    #[serde(flatten)]
    state: VmState,
}

/// Lists the machines that have a socket where those with a name have it. Returns the exit status.
///
/// # Errors
/// If the directory cannot be read.
pub fn ps_command(json: bool) -> Result<u8> {
    let rows = machines(&directory())?;
    if json {
        print(&to_json(&rows));
        return Ok(Status::PowerOff.code());
    }
    let cells = rows.iter().map(|Row { name, state, .. }| {
        let run = match state.state {
            RunState::Running => "running",
            RunState::Paused => "paused",
        };
        [
            name.clone(),
            state.pid.to_string(),
            run.to_owned(),
            state.vcpus.to_string(),
            Size(state.memory).to_string(),
            uptime(state.uptime),
            state.kernel.clone(),
        ]
    });
    print(&table(["NAME", "PID", "STATE", "VCPUS", "MEMORY", "UP", "KERNEL"], cells.collect()));
    Ok(Status::PowerOff.code())
}

/// Those that answer. A socket that a killed process left behind does not.
fn machines(directory: &Path) -> Result<Vec<Row>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::host(format!("cannot read {}", directory.display())).because(e)),
    };
    let mut rows: Vec<Row> = entries
        .flatten()
        .filter_map(|entry| {
            let socket = entry.path();
            let name = socket.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned();
            let state = state(&socket).ok()?;
            Some(Row { name, socket, state })
        })
        .collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn uptime(seconds: u64) -> String {
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, ..) => format!("{d}d{h:02}h"),
    }
}

pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    // What is ours to write can be written.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

pub(super) fn print(text: &str) {
    // Whoever does not read it any more has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Columns as wide as they have to be. Control characters, which names of files may have, are not for the terminal.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: Vec<[String; N]>) -> String {
    let clean =
        |cell: &String| cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let mut all = vec![heads.map(str::to_owned)];
    all.extend(rows.iter().map(|row| row.each_ref().map(clean)));
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_are_short() {
        for (seconds, text) in [(0, "0s"), (61, "1m01s"), (3_660, "1h01m"), (90_000, "1d01h")] {
            assert_eq!(uptime(seconds), text);
        }
    }

    #[test]
    fn a_balloon_is_a_row_and_what_the_guest_does_not_tell_a_dash() {
        let stats = Some(GuestMemory { free: Some(240 << 20), ..GuestMemory::default() });
        let mut state = BalloonState {
            target: 16 << 20,
            actual: 12 << 20,
            memory: 256 << 20,
            discarded: 0,
            failure: None,
            stats,
        };
        let rows = "TARGET  ACTUAL  MEMORY  FREE  AVAILABLE\n16M     12M     256M    240M  -\n";
        assert_eq!(balloon_table(&state), rows);
        state.failure = Some("out of luck".into());
        assert!(balloon_table(&state).ends_with("taken all of it: out of luck\n"));
    }

    #[test]
    fn a_disks_path_is_the_clients() {
        let here = std::env::current_dir().unwrap();
        let here = here.display();
        for (given, sent) in [
            ("path=/a b,,c.img,serial=x", "path=/a b,,c.img,serial=x".to_owned()),
            ("serial=p,,q,path=a,,b.img", format!("serial=p,,q,path={here}/a,,b.img")),
            ("nonsense", "nonsense".to_owned()),
            ("path=", "path=".to_owned()),
        ] {
            assert_eq!(absolute(given).unwrap(), sent);
        }
    }

    #[test]
    fn tables_are_aligned_and_free_of_control_characters() {
        let text =
            table(["A", "BB"], vec![["long".into(), "x\u{1b}[2J".into()], ["s".into(), String::new()]]);
        assert_eq!(text, "A     BB\nlong  x?[2J\ns\n");
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_machines() {
        assert!(machines(Path::new("/nonexistent/doorbell")).unwrap().is_empty());
    }
}
