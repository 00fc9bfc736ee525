// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Platform and AMBA devices of the host's in the guest: `--platform 9010000.pl031`.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use irq_types::{Spi, TriggerMode};
use irqfd::ResampleSubscriber;
use vfio_passthrough::ResamplePath;
use vfio_passthrough::platform::{GuestNode, HostNode, HostTree, Overlay, PlatformDevice};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::layout;
use crate::lines::Lines;
use crate::vfio::{Explain, Passthrough, explain};
use crate::vfio_config::{Iommu, Platform};

/// What a region is aligned to at least: the largest page of any host or guest.
const ALIGNMENT: u64 = 64 << 10;

/// Bytes of an overlay that are read: several times what the largest in practice have.
const MAX_OVERLAY: u64 = 1 << 20;

/// All platform devices of a machine.
#[derive(Debug, Default)]
pub(crate) struct PlatformDevices {
    devices: Vec<Assigned>,
}

/// One of them, and how the guest's device tree describes it.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) name: String,
    pub(crate) device: Arc<PlatformDevice>,
    node: GuestNode,
}

/// What is left of the windows that platform devices are put into.
struct Room {
    addresses: Range<u64>,
    spis: Range<u32>,
}

impl Room {
    /// Guest-physical addresses for a region of so many bytes.
    fn region(&mut self, size: u64) -> Option<u64> {
        let base = self
            .addresses
            .start
            .checked_next_multiple_of(ALIGNMENT.max(size.checked_next_power_of_two()?))?;
        let end = base.checked_add(size)?;
        (end <= self.addresses.end).then(|| {
            self.addresses.start = end;
            base
        })
    }

    fn spi(&mut self) -> Option<Spi> {
        Spi::new(self.spis.next()?).ok()
    }
}

impl PlatformDevices {
    /// Opens the devices and makes them the guest's: registers into its address space, interrupts to its lines.
    pub(crate) fn build(
        wanted: &[Platform],
        host: &Passthrough,
        lines: &Lines,
        bus: &mut Bus,
    ) -> Result<Self> {
        let mut room = Room { addresses: layout::PLATFORM, spis: layout::PLATFORM_SPIS };
        let devices = wanted
            .iter()
            .map(|wanted| Assigned::build(wanted, host, lines, bus, &mut room))
            .collect::<Result<_>>()?;
        Ok(Self { devices })
    }

    /// The devices.
    pub(crate) fn devices(&self) -> &[Assigned] {
        &self.devices
    }

    /// The devices' nodes.
    pub(crate) fn nodes(&self) -> Vec<GuestNode> {
        self.devices.iter().map(|assigned| assigned.node.clone()).collect()
    }

    /// What the event loop has to run for them.
    pub(crate) fn resamplers(&self) -> Vec<ResampleSubscriber> {
        let mut subscribers = Vec::new();
        for Assigned { name, device, .. } in &self.devices {
            for resampler in device.resamplers() {
                let name = name.clone();
                subscribers.push(ResampleSubscriber::new(resampler, move |trouble| {
                    tracing::error!("the interrupt of {name}: {trouble:?}");
                }));
            }
        }
        subscribers
    }
}

impl Assigned {
    fn build(
        wanted: &Platform,
        host: &Passthrough,
        lines: &Lines,
        bus: &mut Bus,
        room: &mut Room,
    ) -> Result<Self> {
        let option = format!("--platform {}", wanted.device);
        let found = host.sysfs.platform_device(&wanted.device).explain(&option)?;
        let name = found.name().to_owned();
        let of_node = found.of_node().ok_or_else(|| {
            Error::host(format!("{option}: {name} has no node in the host's device tree"))
                .hint("only devices that the host's device tree describes can be described to the guest")
        })?;
        let host_node = HostNode::read(&of_node)
            .map_err(|e| Error::host(format!("{option}: cannot read {}", of_node.display())).because(e))?;
        if let (Some(property), Iommu::NoIommu) = (host_node.dma(), wanted.iommu) {
            return Err(Error::host(format!(
                "{option}: {name} reads and writes memory by itself ({property} in its node), which is all of the host's without an IOMMU"
            ))
            .hint("leave iommu= out if the device is behind an IOMMU, or give the guest another device"));
        }
        let mut node = GuestNode::from_host(&host_node, &HostTree::new(&host.sysfs));
        if let Some(path) = &wanted.overlay {
            apply_overlay(&mut node, path).map_err(|e| {
                Error::usage(format!("{option}: cannot use the overlay {}", path.display()))
                    .because(e)
                    .hint("make it with: dtc -I dts -O dtb -o FILE.dtbo FILE.dts")
            })?;
        }
        for dropped in node.dropped() {
            tracing::warn!("{name}: the guest's node is without {dropped}");
        }

        let device = host.spaces.open(&found, wanted.iommu.into()).explain(&option)?;
        let mut device = PlatformDevice::open(device).explain(&option)?;
        device.check(&host_node).explain(&option)?;
        let sizes: Vec<u64> = device.region_sizes().collect();
        for (index, size) in sizes.into_iter().enumerate() {
            let base = room.region(size).ok_or_else(|| {
                Error::host(format!("{option}: no room for {size:#x} bytes of registers"))
                    .hint("give the guest fewer platform devices")
            })?;
            let mapped = device.place(index, base, &*host.slots).explain(&option)?;
            tracing::info!(
                "{name}: region {index} at {base:#x}, {}",
                if mapped { "mapped" } else { "trapped" }
            );
        }
        let modes: Vec<TriggerMode> = device.interrupt_modes().collect();
        let mut interrupts = Vec::new();
        for (index, mode) in modes.into_iter().enumerate() {
            let spi = room.spi().ok_or_else(|| {
                Error::host(format!("{option}: no interrupt line is left"))
                    .hint("give the guest fewer platform devices")
            })?;
            let line = lines.claim(&name, spi)?;
            let path: ResamplePath = wanted.resample.into();
            device.connect(index, lines.wiring(), &line, path).map_err(|e| explain(&option, e))?;
            tracing::info!("{name}: interrupt {index}, {mode}, to {spi}");
            interrupts.push((spi, mode));
        }
        let regions = device.placed();
        node.place(regions.clone(), interrupts);
        let device = Arc::new(device);
        for (index, &(base, size)) in regions.iter().enumerate() {
            let registers = Registers { device: Arc::clone(&device), region: index };
            bus.attach(&(base..base + size), Arc::new(registers))
                .map_err(|e| Error::failure(format!("cannot lay out the registers of {name}")).because(e))?;
        }
        Ok(Self { name, device, node })
    }
}

/// Adds what the user's overlay says to a device's node.
fn apply_overlay(
    node: &mut GuestNode,
    path: &Path,
) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut blob = Vec::new();
    // A file that is longer ends too early, and is said to.
    File::open(path)?.take(MAX_OVERLAY).read_to_end(&mut blob)?;
    Ok(node.apply(Overlay::parse(&blob)?)?)
}

/// The registers of a region, for accesses that the host does not let through to the device directly.
struct Registers {
    device: Arc<PlatformDevice>,
    region: usize,
}

impl DeviceMmio for Registers {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.device.load(self.region, offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.device.store(self.region, offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_to_any_page_and_to_their_own_size() {
        let mut room = Room { addresses: 0x0c00_0000..0x0e00_0000, spis: 16..18 };
        assert_eq!(room.region(0x1000), Some(0x0c00_0000));
        assert_eq!(room.region(0x20), Some(0x0c01_0000));
        assert_eq!(room.region(0x18_0000), Some(0x0c20_0000));
        assert_eq!(room.region(0x200_0000), None);
        assert_eq!(room.region(u64::MAX), None);
        assert_eq!(room.region(0x1000), Some(0x0c38_0000));
        assert_eq!([room.spi(), room.spi(), room.spi()], [Spi::new(16).ok(), Spi::new(17).ok(), None]);
    }
}
