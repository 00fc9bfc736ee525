// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux boots, and finds the machine that it was promised.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use doorbell_tests::guest::{Finished, Gic, Guest, Host, Scratch};
use doorbell_tests::host_or_skip;

/// What the guest's kernel says about CPUs, interrupt controller, MSIs and clocks.
const FACTS: &str = r#"
echo "online=$(cat /sys/devices/system/cpu/online)"
echo "psci=$(dmesg | sed -n 's/.*psci: \(PSCIv[0-9.]*\) detected.*/\1/p')"
echo "clocksource=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
for node in /proc/device-tree/*/compatible /proc/device-tree/intc*/*/compatible /proc/device-tree/interrupt-controller*/*/compatible; do
    [ -f "$node" ] && echo "node=$(tr '\0' ' ' <$node)"
done
dmesg | sed -nE 's/.*(ITS@0x[0-9a-f]+).*/msi=\1/p; s/.*(GICv2m: range.*)/msi=\1/p' | uniq
cat /proc/interrupts
"#;

/// The line of an interrupt in the guest's `/proc/interrupts`: a count for each CPU, and the rest in one.
fn interrupt(end: &Finished, name: &str) -> (Vec<u64>, String) {
    let text = end.text();
    let line = text
        .lines()
        .find(|line| line.ends_with(name) && line.contains(':'))
        .unwrap_or_else(|| panic!("no interrupt {name}{end}"));
    let mut words = line.split_whitespace().skip(1).peekable();
    let mut counts = Vec::new();
    while let Some(count) = words.peek().and_then(|word| word.parse().ok()) {
        // The number after the chip's name is the interrupt's, so counts end at the first word that is none.
        counts.push(count);
        words.next();
    }
    (counts, words.collect::<Vec<_>>().join(" "))
}

/// Boots with `cpus` vCPUs and checks all that does not depend on how many there are.
fn boots(host: &Host, cpus: u32) -> Finished {
    let end = Guest::linux(host).cpus(cpus).flag("--report").script(FACTS).run();
    end.assert_status(0);
    assert_eq!(end.value("clocksource"), "arch_sys_counter");
    let psci = end.value("psci");
    assert!(psci.as_str() >= "PSCIv1.0", "{psci}");
    let text = end.text();
    let (chip, gic, msi, other) = match host.gic {
        Gic::V2 => ("GIC-0", "arm,cortex-a15-gic", "GICv2m: range[", "arm,gic-v3"),
        Gic::V3 => ("GICv3", "arm,gic-v3", "ITS@0x", "arm,cortex-a15-gic"),
    };
    assert!(text.contains(gic) && !text.contains(other), "the device tree has another GIC{end}");
    assert!(end.value("msi").starts_with(msi), "{}", end.value("msi"));

    // The timer interrupts every CPU, through its private interrupt 27 of the GIC, which is level.
    let (ticks, what) = interrupt(&end, "arch_timer");
    assert_eq!(ticks.len(), cpus as usize, "{ticks:?}");
    assert!(ticks.iter().all(|&n| n > 0), "a CPU without timer interrupts: {ticks:?}");
    assert_eq!(what, format!("{chip} 27 Level arch_timer"));

    // The serial port's is level on both sides, so the guest's EOIs came back. Rises before an EOI are one interrupt.
    let (counts, what) = interrupt(&end, "ttyS0");
    assert!(counts.iter().sum::<u64>() > 0);
    assert_eq!(what, format!("{chip} 32 Level ttyS0"));
    let [.., raised, resampled] = end.report("serial port")[..] else { panic!("{end}") };
    assert!(resampled > 0 && resampled <= raised, "{raised} raised, {resampled} EOIs");
    end
}

#[test]
fn one_vcpu_boots() {
    let host = host_or_skip!();
    let end = boots(&host, 1);
    assert_eq!(end.value("online"), "0");
}

#[test]
fn two_vcpus_boot() {
    let host = host_or_skip!();
    let end = boots(&host, 2);
    assert_eq!(end.value("online"), "0-1");
}

#[test]
fn eight_vcpus_boot_and_interrupt_each_other() {
    let host = host_or_skip!();
    let end = boots(&host, 8);
    assert_eq!(end.value("online"), "0-7");
    // Each CPU but the first was called upon by another at least once.
    let (calls, _) = interrupt(&end, "Function call interrupts");
    assert!(calls.len() == 8 && calls.iter().skip(1).all(|&n| n > 0), "{calls:?}");
}

#[test]
fn debians_kernel_boots() {
    let host = host_or_skip!();
    let end = Guest::debian(&host)
        .cpus(2)
        .script(r#"echo "online=$(cat /sys/devices/system/cpu/online) $(uname -r)""#);
    let end = end.run();
    end.assert_status(0);
    let online = end.value("online");
    assert!(online.starts_with("0-1 6.12") && online.ends_with("-arm64"), "{online}");
}

#[test]
fn a_gzip_compressed_kernel_boots() {
    let host = host_or_skip!();
    let scratch = Scratch::new();
    let packed =
        Command::new("gzip").args(["-1", "-c"]).arg(&host.kernel).stdin(Stdio::null()).output().unwrap();
    assert!(packed.status.success() && packed.stdout.starts_with(&[0x1f, 0x8b]));
    let kernel = scratch.file("Image.gz", packed.stdout);
    Guest::bench(&host).kernel(&kernel).run().assert_status(0);
}

#[test]
fn every_vcpu_but_one_goes_off_and_comes_back() {
    let host = host_or_skip!();
    // PSCI CPU_OFF, CPU_ON and AFFINITY_INFO, of a secondary CPU and of the one that booted; then work on each.
    let end = Guest::linux(&host)
        .cpus(4)
        .script(
            r#"
            cd /sys/devices/system/cpu
            for cpu in 1 2 3; do echo 0 >cpu$cpu/online; done
            echo "one=$(cat online)"
            for cpu in 1 2 3; do echo 1 >cpu$cpu/online; done
            echo "back=$(cat online)"
            echo 0 >cpu0/online && echo "without0=$(cat online)"
            echo 1 >cpu0/online
            echo "all=$(cat online)"
            for cpu in 0 1 2 3; do taskset -c $cpu sh -c 'read -r a </proc/self/stat; echo "$a"' | awk -v c=$cpu '{ print "ran" c "=" $39 }'; done
            echo "complaints=$(dmesg | grep -cE 'psci.*(failed|may not have shut down)|CPU[0-9]: failed')"
            "#,
        )
        .run();
    end.assert_status(0);
    assert_eq!(end.value("one"), "0");
    assert_eq!(end.value("back"), "0-3");
    assert_eq!(end.value("without0"), "1-3");
    assert_eq!(end.value("all"), "0-3");
    for cpu in 0..4 {
        assert_eq!(end.value(&format!("ran{cpu}")), cpu.to_string());
    }
    assert_eq!(end.value("complaints"), "0");
}

#[test]
fn the_guest_has_the_hosts_vectors_pointer_authentication_and_performance_monitor() {
    let host = host_or_skip!();
    let end = Guest::linux(&host)
        .script(
            r#"
            echo "features=$(sed -n 's/^Features.*: //p' /proc/cpuinfo)"
            echo "pmu=$(ls /sys/bus/event_source/devices)"
            echo "vector=$(cat /proc/sys/abi/sve_default_vector_length)"
            cat /proc/interrupts
            "#,
        )
        .run();
    end.assert_status(0);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let features = |line: &str| line.split_whitespace().map(str::to_owned).collect::<HashSet<_>>();
    let hosts = features(cpuinfo.lines().find_map(|line| line.strip_prefix("Features\t:")).unwrap());
    let guests = features(&end.value("features"));
    for name in ["sve", "paca", "pacg"] {
        assert_eq!(guests.contains(name), hosts.contains(name), "{name}: guest {guests:?}, host {hosts:?}");
    }
    if hosts.contains("sve") {
        let hosts = fs::read_to_string("/proc/sys/abi/sve_default_vector_length").unwrap();
        assert_eq!(end.value("vector"), hosts.trim());
    }
    let host_has_pmu = fs::read_dir("/sys/bus/event_source/devices")
        .unwrap()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("armv8"));
    assert_eq!(end.text().contains("armv8_pmuv3"), host_has_pmu, "{end}");
    if host_has_pmu {
        let (_, what) = interrupt(&end, "arm-pmu");
        assert!(what.contains(" 23 Level "), "{what}");
    }
}

#[test]
fn the_clock_has_the_hosts_time() {
    let host = host_or_skip!();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let end = Guest::linux(&host)
        .script(
            r#"
            echo "driver=$(cat /sys/class/rtc/rtc0/name)"
            echo "hardware=$(cat /sys/class/rtc/rtc0/since_epoch)"
            echo "set=$(cat /sys/class/rtc/rtc0/hctosys)"
            "#,
        )
        .run();
    let after = now();
    end.assert_status(0);
    assert!(end.value("driver").contains("pl031"), "{}", end.value("driver"));
    let guests: u64 = end.value("hardware").parse().unwrap();
    assert!((before..=after).contains(&guests), "{guests} is not within {before}..={after}");
    assert_eq!(end.value("set"), "1", "the guest's own clock was not set from it");
}

#[test]
fn without_msis_there_is_no_receiver_of_them() {
    let host = host_or_skip!();
    let end = Guest::linux(&host).option("--msi", "none").script(FACTS).run();
    end.assert_status(0);
    for absent in ["msi=", "gic-v3-its", "gic-v2m-frame"] {
        assert!(!end.text().contains(absent), "{absent}{end}");
    }
    assert!(end.text().contains("node=arm,"), "the script does not see the nodes any more{end}");
}
