// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be asked of a running machine, and what it answers: the paths, the JSON.

use serde::{Deserialize, Serialize};

use super::http::{Answer, Request};
use crate::balloon::BalloonState;
use crate::devices::{Addition, Pluggable};
use crate::error::{Error, Result};
use crate::irq::Line;
use crate::irq::explain::Explanation;
use crate::metrics::{self, Family};
use crate::size::Size;
use crate::status::Status;

/// A machine that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmState {
    /// The process.
    pub pid: u32,
    /// Whether its vCPUs run.
    pub state: RunState,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Its interrupt controller, in words.
    pub gic: String,
    /// The kernel's file.
    pub kernel: String,
    /// Seconds since it was started, or started again after it reset itself.
    pub uptime: u64,
}

/// Whether vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// They do.
    Running,
    /// They are held still.
    Paused,
}

/// A device on the guest's PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceState {
    /// What it is called in requests.
    pub name: String,
    /// "virtio" or "vfio".
    pub kind: String,
    /// Where the guest has it; where it is plugged in, while the guest has not numbered its bus.
    pub address: String,
    /// The host's name of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
    /// Whether it can be removed while the guest runs.
    pub removable: bool,
}

/// What a running machine can be asked for.
pub(crate) trait Machine: Send + Sync {
    fn state(&self) -> VmState;
    fn pause(&self) -> Result<()>;
    fn resume(&self);
    /// Asks the guest to power itself off.
    fn shutdown(&self) -> Result<()>;
    /// Ends the machine.
    fn kill(&self);
    fn devices(&self) -> Vec<DeviceState>;
    /// Puts a device into a slot. What it is called.
    fn add(&self, device: Addition) -> Result<String>;
    /// Asks the guest to release the device. What it is called.
    fn remove(&self, name: &str) -> Result<String>;
    fn balloon(&self) -> Result<BalloonState>;
    /// Asks the guest to give back so many bytes in all.
    fn set_balloon(&self, size: u64) -> Result<()>;
    fn irqs(&self) -> Vec<Line>;
    /// Why an interrupt does not arrive; `None` if there is none of this name.
    fn explain(&self, line: &str) -> Option<Explanation>;
    fn metrics(&self) -> Vec<Family>;
}

/// What to add, as on the command line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Asked {
    Vfio(String),
    Disk(String),
    Net(String),
}

/// What a device is called.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceName {
    pub(crate) name: String,
}

/// How large the balloon is to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inflation {
    /// In bytes, or as on the command line.
    size: Size,
}

#[derive(Serialize)]
struct Refusal<'a> {
    error: &'a str,
}

fn json(status: u16, value: &impl Serialize) -> Answer {
    // What is ours to write can be written.
    let body = serde_json::to_vec(value).unwrap_or_default();
    Answer { status, kind: "application/json", body }
}

/// One line on what is wrong.
pub(crate) fn refuse(status: u16, error: &str) -> Answer {
    json(status, &Refusal { error })
}

fn done(result: Result<()>, status: u16) -> Answer {
    match result {
        Ok(()) => json(status, &serde_json::Map::new()),
        Err(e) => refuse(status_of(&e), &e.one_line()),
    }
}

fn named(result: Result<String>, status: u16) -> Answer {
    match result {
        Ok(name) => json(status, &DeviceName { name }),
        Err(e) => refuse(status_of(&e), &e.one_line()),
    }
}

fn status_of(error: &Error) -> u16 {
    match error.status() {
        Status::Usage => 400,
        Status::Host | Status::GuestFailed => 409,
        _ => 500,
    }
}

/// Answers a request. Without a machine, one is being started again.
pub(crate) fn answer(request: &Request, machine: Option<&dyn Machine>) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let known: &[&str] = match parts.as_slice() {
        ["vm"] => &["GET"],
        ["vm", "pause" | "resume" | "shutdown" | "kill"] => &["PUT"],
        ["balloon"] => &["GET", "PUT"],
        ["devices"] => &["GET", "POST"],
        ["devices", _] => &["DELETE"],
        ["irqs"] | ["irqs", _] | ["irqs", _, "explain"] | ["metrics"] => &["GET"],
        _ => {
            return refuse(404, &format!("there is no {path}: see /vm, /balloon, /devices, /irqs, /metrics"));
        }
    };
    if !known.contains(&request.method.as_str()) {
        return refuse(405, &format!("{path} takes {}", known.join(", ")));
    }
    let Some(machine) = machine else { return refuse(503, "the guest is being started again") };
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["vm"]) => json(200, &machine.state()),
        (_, ["vm", "pause"]) => done(machine.pause(), 200),
        (_, ["vm", "resume"]) => {
            machine.resume();
            done(Ok(()), 200)
        }
        (_, ["vm", "shutdown"]) => done(machine.shutdown(), 202),
        (_, ["vm", "kill"]) => {
            machine.kill();
            done(Ok(()), 202)
        }
        ("GET", ["balloon"]) => match machine.balloon() {
            Ok(state) => json(200, &state),
            Err(e) => refuse(status_of(&e), &e.one_line()),
        },
        (_, ["balloon"]) => done(inflation(&request.body).and_then(|size| machine.set_balloon(size)), 200),
        ("GET", ["devices"]) => json(200, &machine.devices()),
        ("POST", ["devices"]) => named(addition(&request.body).and_then(|device| machine.add(device)), 200),
        (_, ["devices", name]) => match unescape(name) {
            Some(name) => named(machine.remove(&name), 202),
            None => refuse(400, &format!("'{name}' is no device's name")),
        },
        (_, ["irqs"]) => json(200, &machine.irqs()),
        (_, ["irqs", name, ..]) => match unescape(name) {
            Some(name) => interrupt(machine, &name, parts.len() == 3),
            None => refuse(400, &format!("'{name}' is no interrupt's name")),
        },
        (_, ["metrics"]) => {
            let body = metrics::text(&machine.metrics()).into_bytes();
            Answer { status: 200, kind: "text/plain; version=0.0.4", body }
        }
        _ => refuse(404, &format!("there is no {path}")),
    }
}

fn interrupt(machine: &dyn Machine, name: &str, explain: bool) -> Answer {
    let found = if explain {
        machine.explain(name).map(|explanation| json(200, &explanation))
    } else {
        machine.irqs().iter().find(|line| line.line == name).map(|line| json(200, line))
    };
    found.unwrap_or_else(|| {
        let hint = named_after(machine, name)
            .unwrap_or_else(|| "`doorbell irq list --all` and GET /irqs have their names".to_owned());
        refuse(404, &format!("the guest has no interrupt called {name}; {hint}"))
    })
}

/// The interrupts of a device, for somebody who has named the device.
fn named_after(machine: &dyn Machine, device: &str) -> Option<String> {
    /// A device may have 2048.
    const SHOWN: usize = 4;
    let prefix = format!("{device}:");
    let names = machine.irqs().into_iter().map(|line| line.line).filter(|line| line.starts_with(&prefix));
    let names: Vec<String> = names.collect();
    let shown: Vec<&str> = names.iter().map(String::as_str).take(SHOWN).collect();
    let more = names.len() - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("that device's are {}{more}", shown.join(", ")))
}

fn addition(body: &[u8]) -> Result<Addition> {
    let asked = serde_json::from_slice(body).map_err(|e| {
        Error::usage("cannot read the request")
            .because(e)
            .hint("send {\"vfio\": \"0000:00:08.0\"}, {\"disk\": \"path=/a.img\"} or {\"net\": \"tap=tap0\"}")
    })?;
    let (kind, text, parsed) = match &asked {
        Asked::Vfio(text) => ("vfio", text, text.parse().map(Addition::Vfio)),
        Asked::Disk(text) => ("disk", text, text.parse().map(|disk| Addition::Virtio(Pluggable::Disk(disk)))),
        Asked::Net(text) => ("net", text, text.parse().map(|net| Addition::Virtio(Pluggable::Net(net)))),
    };
    parsed.map_err(|e: String| Error::usage(format!("{kind} {text}: {e}")))
}

fn inflation(body: &[u8]) -> Result<u64> {
    let Inflation { size: Size(bytes) } = serde_json::from_slice(body).map_err(|e| {
        Error::usage("cannot read the request")
            .because(e)
            .hint("send {\"size\": \"256M\"}, or a number of bytes")
    })?;
    Ok(bytes)
}

/// Percent-encoding (RFC 3986, section 2.1): names may have any characters.
pub(crate) fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let (hex, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Notes what it is asked for.
    #[derive(Default)]
    pub(crate) struct Noted(pub(crate) Mutex<Vec<String>>);

    impl Noted {
        fn note(&self, what: impl Into<String>) {
            self.0.lock().unwrap().push(what.into());
        }
    }

    pub(crate) fn state() -> VmState {
        VmState {
            pid: 7,
            state: RunState::Paused,
            vcpus: 2,
            memory: 512 << 20,
            gic: "GICv3".into(),
            kernel: "Image".into(),
            uptime: 61,
        }
    }

    impl Machine for Noted {
        fn state(&self) -> VmState {
            state()
        }
        fn pause(&self) -> Result<()> {
            self.note("pause");
            Err(Error::failure("the guest cannot be paused"))
        }
        fn resume(&self) {
            self.note("resume");
        }
        fn shutdown(&self) -> Result<()> {
            self.note("shutdown");
            Err(Error::guest("nobody listens"))
        }
        fn kill(&self) {
            self.note("kill");
        }
        fn devices(&self) -> Vec<DeviceState> {
            Vec::new()
        }
        fn add(&self, device: Addition) -> Result<String> {
            let name = match device {
                Addition::Vfio(vfio) => vfio.name().to_owned(),
                Addition::Virtio(device) => device.host(),
            };
            self.note(format!("add {name}"));
            Ok(name)
        }
        fn remove(&self, name: &str) -> Result<String> {
            self.note(format!("remove {name}"));
            Err(Error::usage("there is none").hint("look"))
        }
        fn balloon(&self) -> Result<BalloonState> {
            Ok(BalloonState {
                target: 5 << 20,
                actual: 4 << 20,
                memory: 512 << 20,
                discarded: 6 << 20,
                failure: None,
                stats: None,
            })
        }
        fn set_balloon(&self, size: u64) -> Result<()> {
            self.note(format!("balloon {size}"));
            Ok(())
        }
        fn irqs(&self) -> Vec<Line> {
            vec![crate::irq::line::test_line("disk-0:1", 7), crate::irq::line::test_line("a b", 8)]
        }
        fn explain(&self, line: &str) -> Option<Explanation> {
            self.note(format!("explain {line}"));
            None
        }
        fn metrics(&self) -> Vec<Family> {
            metrics::interrupts(&self.irqs())
        }
    }

    fn ask(machine: &Noted, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = Request { method: method.into(), path: path.into(), body: body.into() };
        let answer = answer(&request, Some(machine));
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    #[test]
    fn each_request_does_its_own_thing_and_only_that() {
        for (method, path, body, status, noted, word) in [
            ("GET", "/vm", "", 200, None, "\"state\":\"paused\""),
            ("PUT", "/vm/pause", "", 500, Some("pause"), "cannot be paused"),
            ("PUT", "/vm/resume", "", 200, Some("resume"), "{}"),
            ("PUT", "/vm/shutdown", "", 409, Some("shutdown"), "nobody listens"),
            ("PUT", "/vm/kill", "", 202, Some("kill"), "{}"),
            ("GET", "/balloon", "", 200, None, "\"target\":5242880,\"actual\":4194304,"),
            ("PUT", "/balloon", r#"{"size":4096}"#, 200, Some("balloon 4096"), "{}"),
            ("PUT", "/balloon", r#"{"size":"1K"}"#, 200, Some("balloon 1024"), "{}"),
            ("PUT", "/balloon", r#"{"size":-1}"#, 400, None, "256M"),
            ("PUT", "/balloon", r#"{"target":1}"#, 400, None, "target"),
            ("POST", "/balloon", "", 405, None, "GET, PUT"),
            ("GET", "/devices", "", 200, None, "[]"),
            ("POST", "/devices", r#"{"vfio":"0000:00:08.0,id=x"}"#, 200, Some("add x"), "{\"name\":\"x\"}"),
            ("POST", "/devices", r#"{"disk":"path=a"}"#, 200, Some("add a"), "{\"name\":\"a\"}"),
            ("POST", "/devices", r#"{"net":"tap=b"}"#, 200, Some("add b"), "{\"name\":\"b\"}"),
            ("POST", "/devices", r#"{"vfio":"0000:00:08.0,colour=red"}"#, 400, None, "colour"),
            ("POST", "/devices", r#"{"disk":"a"}"#, 400, None, "disk a: 'a' is no KEY=VALUE"),
            ("POST", "/devices", r#"{"disks":"a"}"#, 400, None, "expected one of `vfio`, `disk`, `net`"),
            ("POST", "/devices", r#"{"disk":"path=a","net":"tap=b"}"#, 400, None, "cannot read the request"),
            ("POST", "/devices", "", 400, None, "cannot read the request"),
            ("DELETE", "/devices/a%20b", "", 400, Some("remove a b"), "there is none; look"),
            ("DELETE", "/devices/%zz", "", 400, None, "%zz"),
            ("DELETE", "/devices/%f", "", 400, None, "%f"),
            ("DELETE", "/devices", "", 405, None, "GET, POST"),
            ("GET", "/vm/pause", "", 405, None, "PUT"),
            ("GET", "/", "", 404, None, "/devices"),
            ("GET", "nothing", "", 404, None, "/vm"),
            ("GET", "/irqs", "", 200, None, "[{\"line\":\"disk-0:1\""),
            ("GET", "/irqs/disk-0:1", "", 200, None, "\"fired\":7"),
            ("GET", "/irqs/a%20b?x", "", 200, None, "\"fired\":8"),
            ("GET", "/irqs/c", "", 404, None, "no interrupt called c; `doorbell irq list"),
            ("GET", "/irqs/disk-0", "", 404, None, "no interrupt called disk-0; that device's are disk-0:1"),
            ("GET", "/irqs/disk-0:1/explain", "", 404, Some("explain disk-0:1"), "no interrupt"),
            ("GET", "/irqs/disk-0:1/explain/it", "", 404, None, "/irqs"),
            ("PUT", "/irqs", "", 405, None, "GET"),
            ("GET", "/metrics", "", 200, None, "doorbell_irq_fired_total{line=\"a b\""),
        ] {
            let machine = Noted::default();
            let (got, text) = ask(&machine, method, path, body);
            assert_eq!((got, text.contains(word)), (status, true), "{method} {path} {body}: {text}");
            let noted: Vec<String> = noted.into_iter().map(str::to_owned).collect();
            assert_eq!(*machine.0.lock().unwrap(), noted, "{method} {path}");
        }
    }

    #[test]
    fn between_two_runs_there_is_no_machine_to_ask() {
        let request = Request { method: "GET".into(), path: "/vm".into(), body: Vec::new() };
        assert_eq!(answer(&request, None).status, 503);
    }

    #[test]
    fn names_come_back_as_they_were() {
        for name in ["0000:00:08.0", "a b/c", "é%", ""] {
            assert_eq!(unescape(&escape(name)).as_deref(), Some(name));
            assert!(!escape(name).contains([' ', '/']));
        }
    }
}
