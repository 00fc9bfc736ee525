// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that is brought into some state, and asked about its interrupts.

use serde_json::Value;

use super::{Guest, Host, Input, Running, done};

/// Wrong, line, verdict, words, and how the guest undoes it.
pub type State<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);

/// In the guest: does what is sent, line by line. Registers are reached through `/dev/mem`; devices are told apart by their numbers on bus 0.
const TOLD: &str = r#"
    stty -echo
    ecam() { echo $((0x30000000 + ($1 << 15) + $2)); }
    cap() {
        at=$(($(devmem $(ecam $1 0x34) 8)))
        while [ $at != 0 ] && [ $(($(devmem $(ecam $1 $at) 8))) != $(($2)) ]; do
            at=$(($(devmem $(ecam $1 $((at + 1))) 8)))
        done
        echo $at
    }
    control() { ecam $1 $(($(cap $1 $2) + 2)); }
    change() { devmem $1 16 $(($(devmem $1 16) $2)); }
    change32() { devmem $1 32 $(($(devmem $1 32) $2)); }
    bar() {
        low=$(($(devmem $(ecam $1 $((0x10 + 4 * $2))) 32)))
        high=0
        [ $((low & 6)) = 4 ] && high=$(($(devmem $(ecam $1 $((0x14 + 4 * $2))) 32)))
        echo $(((high << 32) + (low & ~15)))
    }
    table() {
        where=$(($(devmem $(ecam $1 $(($(cap $1 0x11) + 4))) 32)))
        echo $(($(bar $1 $((where & 7))) + (where & ~7)))
    }
    virtio() {
        at=$(($(devmem $(ecam $1 0x34) 8)))
        while [ $at != 0 ]; do
            [ $(($(devmem $(ecam $1 $at) 8))) = 9 ] && [ $(($(devmem $(ecam $1 $((at + 3))) 8))) = $2 ] && break
            at=$(($(devmem $(ecam $1 $((at + 1))) 8)))
        done
        echo $(($(bar $1 $(($(devmem $(ecam $1 $((at + 4))) 8)))) + $(devmem $(ecam $1 $((at + 8))) 32)))
    }
    reg() { hexdump -v -e '1/1 "%02x"' /proc/device-tree/intc@*/reg /proc/device-tree/interrupt-controller@*/reg 2>/dev/null; }
    gicd=$((0x$(reg | cut -c 1-16)))
    gicr=$((0x$(reg | cut -c 33-48)))
    lpi() {
        table=$(($(devmem $((gicr + 0x70)) 64) & 0xffffffffff000))
        devmem $((table + $1 - 8192)) 8 $(($(devmem $((table + $1 - 8192)) 8) $2))
        devmem $((gicr + 0xa0)) 64 $1
    }
    echo told
    while read -r line; do eval "$line"; echo "did=$?"; done
"#;

/// A guest that does what it is told, and is asked about its interrupts.
#[derive(Debug)]
pub struct Told<'a> {
    host: &'a Host,
    name: &'static str,
    /// The guest itself.
    pub guest: Running,
}

impl<'a> Told<'a> {
    /// One that runs already, and has `--control name`.
    #[must_use]
    pub fn new(host: &'a Host, name: &'static str, guest: Running) -> Self {
        Self { host, name, guest }
    }

    /// Starts `guest`, called `name`, and waits until it can be told.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(host: &'a Host, name: &'static str, guest: Guest<'a>) -> Self {
        let guest = guest.option("--control", name).option("--patience", "0").input(Input::PIPE);
        let mut guest = guest.script(TOLD).start();
        guest.wait_for("told");
        Self { host, name, guest }
    }

    /// Has the guest do a line of shell, which must succeed.
    pub fn does(&mut self, line: &str) {
        self.guest.send(format!("{line}\n"));
        self.guest.wait_for("did=0");
    }

    /// A command about this guest: its words, and what comes after the guest's name. What it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn ask(&self, command: &[&str], more: &[&str]) -> String {
        done(self.host, &[command, &[self.name], more].concat())
    }

    /// What `doorbell irq explain` says of an interrupt.
    ///
    /// # Panics
    /// If it says nothing.
    #[must_use]
    pub fn explain(&self, line: &str) -> Value {
        serde_json::from_str(&self.ask(&["irq", "explain"], &[line, "--json"])).unwrap()
    }

    /// Asks, and checks what is said: the verdict, and words of the last step.
    ///
    /// # Panics
    /// If something else is said.
    pub fn expect(&self, line: &str, verdict: &str, words: &str) {
        check(&self.explain(line), verdict, words);
    }

    /// The same for a state that comes by itself: asks until the verdict is this one.
    ///
    /// # Panics
    /// If it does not come, or something else is said with it.
    pub fn until(&self, line: &str, verdict: &str, words: &str) {
        /// Each takes a moment; where a vCPU does not stop, ten seconds.
        const LOOKS: usize = 20;
        let mut looks = (0..LOOKS).map(|_| self.explain(line));
        match looks.find(|said| said["verdict"] == verdict) {
            Some(said) => check(&said, verdict, words),
            None => panic!("not {verdict}: {:#}", self.explain(line)),
        }
    }

    /// The guest does what is wrong, the interrupt is asked about, and the guest undoes it.
    ///
    /// # Panics
    /// If something else is said, before or after.
    pub fn after(&mut self, &(wrong, line, verdict, words, undo): &State<'_>) {
        self.does(wrong);
        self.expect(line, verdict, words);
        self.does(undo);
        let again = self.explain(line);
        assert!(again["verdict"] == "fine" || again["verdict"] == "not-fired", "undone: {again:#}");
    }

    /// Ends it.
    pub fn end(self) {
        self.ask(&["kill"], &[]);
        self.guest.wait().assert_status(6);
    }
}

fn check(said: &Value, verdict: &str, words: &str) {
    assert_eq!(said["verdict"], verdict, "{said:#}");
    let last = said["steps"].as_array().unwrap().last().unwrap()["found"].as_str().unwrap();
    assert!(last.contains(words), "{words:?} is not in {last:?}");
    let fine = matches!(verdict, "fine" | "not-fired");
    assert_eq!(said["advice"].is_string(), verdict != "fine", "{said:#}");
    assert_eq!(said["steps"].as_array().unwrap().iter().all(|step| step["ok"] == true), fine, "{said:#}");
}
