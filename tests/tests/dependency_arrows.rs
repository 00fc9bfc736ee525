// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The arrows between the crates are the architecture. This holds them against what cargo says.
//!
//! `docs/ARCHITECTURE.md` draws them; a new arrow is added here and there, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Crate → what it may depend on, of this workspace. Development dependencies count too, but for the fake.
const ALLOWED: &[(&str, &[&str])] = &[
    ("irq-types", &[]),
    ("irqchip", &["irq-types"]),
    ("kvm-irqchip", &["irq-types", "irqchip"]),
    ("vgic", &["irq-types", "irqchip"]),
    ("gsi-routing", &["irq-types", "irqchip"]),
    // To pci: optional, so that a vector group is what pci's capabilities drive.
    ("irqfd", &["irq-types", "irqchip", "gsi-routing", "pci"]),
    ("pci", &["irq-types"]),
    ("virtio-devices", &["irq-types", "irqchip", "gsi-routing", "irqfd", "pci"]),
    ("vfio-passthrough", &["irq-types", "irqchip", "gsi-routing", "irqfd", "pci"]),
    (
        "doorbell",
        &[
            "irq-types",
            "irqchip",
            "kvm-irqchip",
            "vgic",
            "gsi-routing",
            "irqfd",
            "pci",
            "virtio-devices",
            "vfio-passthrough",
        ],
    ),
    ("doorbell-bench", &[]),
    // Man pages and completions, from the command line's definition.
    ("doorbell-generate", &["doorbell"]),
    // The example of another VMM: all but ours. Its test needs a guest.
    ("small-vmm", &["irq-types", "irqchip", "kvm-irqchip", "vgic", "gsi-routing", "irqfd", "doorbell-tests"]),
    (
        "doorbell-fuzz",
        &[
            "irq-types",
            "irqchip",
            "vgic",
            "gsi-routing",
            "irqfd",
            "pci",
            "virtio-devices",
            "vfio-passthrough",
            "doorbell",
        ],
    ),
    (
        "doorbell-tests",
        &[
            "irq-types",
            "irqchip",
            "kvm-irqchip",
            "vgic",
            "gsi-routing",
            "irqfd",
            "pci",
            "virtio-devices",
            "vfio-passthrough",
            "doorbell",
        ],
    ),
];

/// Crates whose users must not inherit our versions of these, not even through a private dependency.
const CLEAN: &[&str] = &["irq-types", "irqchip", "gsi-routing"];
const FOREIGN: &[&str] = &["kvm-ioctls", "kvm-bindings", "vm-memory", "vfio-ioctls", "vfio-bindings"];

/// Package → what it depends on, as `cargo tree` prints it.
fn dependencies() -> Option<BTreeMap<String, BTreeSet<String>>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut graph = BTreeMap::new();
    for (name, _) in ALLOWED {
        let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
            .args(["tree", "--offline", "--manifest-path", manifest, "--package", name])
            .args([
                "--all-features",
                "--depth",
                "1",
                "--prefix",
                "none",
                "--edges",
                "normal,build,dev",
                "--format",
                "{p}",
            ])
            .output()
            .ok()?;
        assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
        let names = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .filter(|dependency| dependency != name)
            .collect();
        graph.insert((*name).to_owned(), names);
    }
    Some(graph)
}

#[test]
fn crates_depend_only_on_the_layers_below_them() {
    let Some(graph) = dependencies() else {
        println!("SKIP crates_depend_only_on_the_layers_below_them: there is no cargo on this machine");
        return;
    };
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in ALLOWED {
        for dependency in &graph[*name] {
            assert!(
                !ours.contains(dependency.as_str()) || allowed.contains(&dependency.as_str()),
                "{name} depends on {dependency}: an arrow that docs/ARCHITECTURE.md forbids"
            );
        }
    }
    for name in CLEAN {
        for foreign in FOREIGN {
            assert!(!graph[*name].contains(*foreign), "{name} depends on {foreign}, and so would its users");
        }
    }
}

#[test]
fn every_crate_of_the_workspace_has_its_arrows_listed() {
    let workspace = include_str!("../../Cargo.toml");
    let members = workspace.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    assert_eq!(members.matches('"').count() / 2, ALLOWED.len(), "a crate is missing in this file's table");
}
