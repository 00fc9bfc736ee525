// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The counters of a machine, by their names.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::layout;
use crate::machine::Parts;
use crate::metrics::{self, Family, Kind, Sample, Value, sample};
use crate::pci_host::Virtio;

impl Parts {
    /// All that is counted.
    pub(crate) fn metrics(&self) -> Vec<Family> {
        let single = |name, help, kind, value| Family::single(name, help, kind, value);
        let (bus, serial) = (self.bus.counts(), self.serial.counts());
        let routing = self.lines.wiring().router().counters();
        let usage = self.lines.wiring().router().usage();
        let mut families = vec![
            single("doorbell_vcpus", "vCPUs of the guest.", Kind::Gauge, self.config.cpus.into()),
            single("doorbell_memory_bytes", "Memory of the guest.", Kind::Gauge, self.config.memory.0),
            single(
                "doorbell_uptime_seconds",
                "Since the guest was started.",
                Kind::Gauge,
                self.started.elapsed().as_secs(),
            ),
            single(
                "doorbell_vcpu_returns_total",
                "Returns of KVM_RUN to userspace, over all vCPUs.",
                Kind::Counter,
                self.returns.load(Ordering::Relaxed),
            ),
            Family::new(
                "doorbell_mmio_accesses_total",
                "Accesses of the guest to devices in this process.",
                Kind::Counter,
                vec![
                    sample(&[("direction", "read")], bus.reads),
                    sample(&[("direction", "write")], bus.writes),
                ],
            ),
            single(
                "doorbell_mmio_nobody_total",
                "Those of them to addresses where no device is.",
                Kind::Counter,
                bus.nobody,
            ),
            Family::new(
                "doorbell_serial_bytes_total",
                "Bytes over the serial port, as the guest sees them.",
                Kind::Counter,
                vec![
                    sample(&[("direction", "sent")], serial.sent),
                    sample(&[("direction", "received")], serial.received),
                    sample(&[("direction", "lost")], serial.lost),
                ],
            ),
            Family::new(
                "doorbell_routing_commits_total",
                "Changes of the routing table, by what became of them.",
                Kind::Counter,
                vec![
                    sample(&[("outcome", "installed")], routing.commits),
                    sample(&[("outcome", "failed")], routing.failures),
                    sample(&[("outcome", "refused")], routing.refused),
                    sample(&[("outcome", "without_a_call")], routing.skipped),
                ],
            ),
            single(
                "doorbell_routing_entries",
                "Entries of the routing table.",
                Kind::Gauge,
                usage.entries as u64,
            ),
        ];
        families.extend(metrics::interrupts(&self.irqs()));
        families.extend(self.devices());
        families.extend(self.times());
        families
    }

    fn devices(&self) -> Vec<Family> {
        let virtio: Vec<_> = self
            .pci
            .iter()
            .flat_map(|pci| {
                let state = |virtio: &Virtio| (virtio.name.clone(), virtio.function.state());
                pci.virtio().iter().map(state).collect::<Vec<_>>()
            })
            .collect();
        let of_virtio = |value: &dyn Fn(&virtio_devices::VirtioPciState) -> u64| -> Vec<Sample> {
            virtio.iter().map(|(name, state)| sample(&[("device", name)], value(state))).collect()
        };
        let devices = self.vfio.lock();
        let vfio: Vec<_> =
            devices.iter().map(|assigned| (assigned.wanted.name(), assigned.function.interrupts())).collect();
        let used = vfio.iter().map(|(name, state)| sample(&[("device", name)], state.used as u64)).collect();
        let allocated =
            vfio.iter().map(|(name, state)| sample(&[("device", name)], state.allocated as u64)).collect();
        let gauge = |name, help, samples| Family::new(name, help, Kind::Gauge, samples);
        vec![
            gauge(
                "doorbell_virtio_running",
                "Whether a driver drives the device.",
                of_virtio(&|state| state.is_running().into()),
            ),
            gauge(
                "doorbell_virtio_notified_in_kernel",
                "Whether all notifications go without an exit.",
                of_virtio(&|state| state.notified_in_kernel.into()),
            ),
            Family::new(
                "doorbell_virtio_interrupts_total",
                "Interrupts that this process has passed on, by vector or by line.",
                Kind::Counter,
                of_virtio(&|state| state.interrupts),
            ),
            gauge("doorbell_vfio_vectors_used", "Vectors with a trigger at the host's device.", used),
            gauge(
                "doorbell_vfio_vectors_allocated",
                "Vectors that the host has allocated for the device.",
                allocated,
            ),
        ]
    }

    /// How long accesses to devices took, where that is measured.
    fn times(&self) -> Option<Family> {
        let named = |at: u64| {
            let known = [(layout::SERIAL, "serial"), (layout::RTC, "rtc"), (layout::GPIO, "gpio")];
            let platform = layout::PLATFORM.contains(&at).then_some("platform");
            let fixed = known.into_iter().find(|(range, _)| range.contains(&at)).map(|(_, name)| name);
            fixed.or(platform).unwrap_or("pci")
        };
        let samples: Vec<Sample> = self
            .bus
            .times()
            .iter()
            .map(|(at, histogram)| Sample {
                labels: vec![("device", named(*at).to_owned()), ("address", format!("{at:#x}"))],
                value: Value::Histogram(histogram.snapshot()),
            })
            .collect();
        let help = "How long accesses of the guest to devices in this process took, on the vCPU's thread.";
        (!samples.is_empty())
            .then(|| Family::new("doorbell_mmio_duration_seconds", help, Kind::Histogram, samples))
    }

    /// Writes them to a file, whole or not at all.
    pub(crate) fn write_metrics(&self, path: &Path) {
        let mut scratch = path.as_os_str().to_owned();
        scratch.push(".new");
        let written =
            fs::write(&scratch, metrics::json(&self.metrics())).and_then(|()| fs::rename(&scratch, path));
        if let Err(e) = written {
            let _ = fs::remove_file(&scratch);
            tracing::error!("cannot write the metrics to {}: {e}", path.display());
        }
    }
}
