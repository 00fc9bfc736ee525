// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A fake VM, a fake VFIO, and devices on it.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

pub mod watched;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex};

use gsi_routing::{GsiHandle, Router, models};
use irq_types::{DeviceId, EventId, Lpi, MsiMessage, Spi, TriggerMode};
use irqchip::fake::{FakeHost, FakeVm, Interrupt};
use irqchip::{AttrValue, CreateDevice, DeviceKind, IrqchipReady, arm};
use irqfd::Wiring;
use pci::{BarIndex, PciFunction};
use vfio_passthrough::fake::{Call, FakeDevice, FakeIommu, FakeIrq, FakeRegion, Faults};
use vfio_passthrough::host::{HostDevice, Sysfs};
use vfio_passthrough::iommu::IommuKind;
use vfio_passthrough::pci::{PciEvent, PciOptions, VfioPciFunction};
use vfio_passthrough::{Device, DmaSpace, Error, GuestSlots, ResamplePath, Slot, SlotMemory};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempdir::TempDir;

pub const ITS: u64 = 0x0808_0000;
pub const TRANSLATER: u64 = ITS + 0x1_0040;
pub const SPIS: u32 = 64;
/// The function's number on the guest's bus.
pub const BDF: u16 = 0x18;
pub const SENDER: DeviceId = DeviceId::new(BDF as u32);
/// Event `e` of the device is LPI `FIRST_LPI + e`.
pub const FIRST_LPI: u32 = 8192;
pub const PCI_NAME: &str = "0000:00:08.0";
pub const PLATFORM_NAME: &str = "9010000.pl031";

/// Flags of `VFIO_DEVICE_GET_INFO`.
pub const PCI: u32 = 2;
pub const AMBA: u32 = 8;

/// A directory that looks like sysfs, as far as names go.
pub struct FakeSysfs(TempDir);

impl FakeSysfs {
    pub fn new() -> Self {
        let root = TempDir::new().unwrap();
        for device in [format!("bus/pci/devices/{PCI_NAME}"), format!("bus/amba/devices/{PLATFORM_NAME}")] {
            fs::create_dir_all(root.as_path().join(device)).unwrap();
        }
        Self(root)
    }

    pub fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.0.as_path())
    }

    /// A PCI device that this driver has.
    pub fn add(&self, name: &str, driver: Option<&str>) -> HostDevice {
        let device = self.0.as_path().join("bus/pci/devices").join(name);
        fs::create_dir_all(&device).unwrap();
        let link = device.join("driver");
        let _ = fs::remove_file(&link);
        if let Some(driver) = driver {
            std::os::unix::fs::symlink(format!("../../../../bus/pci/drivers/{driver}"), link).unwrap();
        }
        self.sysfs().pci_device(name).unwrap()
    }
}

/// The guest's address space.
#[derive(Clone, Default)]
pub struct FakeSlots {
    pub faults: Faults,
    pub filled: Arc<Mutex<BTreeMap<u64, u64>>>,
}

struct Filled(FakeSlots, u64, #[expect(dead_code)] SlotMemory);

impl Drop for Filled {
    fn drop(&mut self) {
        self.0.filled.lock().unwrap().remove(&self.1);
    }
}

impl GuestSlots for FakeSlots {
    fn insert(&self, address: u64, memory: SlotMemory) -> io::Result<Slot> {
        self.faults.check(Call::Slot)?;
        let mut filled = self.filled.lock().unwrap();
        let end = address + memory.bytes();
        let taken = filled.range(..end).next_back().is_some_and(|(&at, &bytes)| at + bytes > address);
        if taken || !address.is_multiple_of(4096) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        filled.insert(address, memory.bytes());
        drop(filled);
        Ok(Box::new(Filled(self.clone(), address, memory)))
    }
}

impl FakeSlots {
    pub fn list(&self) -> Vec<(u64, u64)> {
        self.filled.lock().unwrap().iter().map(|(&at, &bytes)| (at, bytes)).collect()
    }
}

/// Everything around a device.
pub struct Rig {
    pub vm: Arc<FakeVm>,
    pub wiring: Wiring,
    pub faults: Faults,
    pub slots: FakeSlots,
    pub iommu: FakeIommu,
    pub space: Arc<DmaSpace>,
    pub sysfs: FakeSysfs,
    pub events: Arc<Mutex<Vec<PciEvent>>>,
}

impl Rig {
    pub fn new() -> Self {
        Self::by(IommuKind::Legacy)
    }

    pub fn by(kind: IommuKind) -> Self {
        let vm = Arc::new(FakeHost::arm64_gicv3().vm());
        let gic = vm.create_device(DeviceKind::GicV3).unwrap();
        gic.set_attr(arm::NR_IRQS, AttrValue::U32(SPIS + 32)).unwrap();
        vm.create_vcpu(0).unwrap();
        let its = vm.create_device(DeviceKind::Its).unwrap();
        its.set_attr(arm::ADDR_ITS, AttrValue::U64(ITS)).unwrap();
        let ready = IrqchipReady::init_vgic(&*gic, SPIS).unwrap();
        let router = Router::new(Arc::clone(&vm) as _, &*vm, &ready, &models::ARM_GIC).unwrap();
        let wiring = Wiring::new(Arc::clone(&vm) as _, router).unwrap();
        for event in 0..64 {
            let lpi = Lpi::new(FIRST_LPI + event).unwrap();
            vm.guest().map_event(SENDER, EventId::new(event), lpi).unwrap();
        }
        let faults = Faults::default();
        let iommu = FakeIommu::new(faults.clone()).by(kind);
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0x4000_0000), 4 << 20),
            (GuestAddress(0x8000_0000), 2 << 20),
        ])
        .unwrap();
        let space = DmaSpace::new(Box::new(iommu.clone()), memory);
        let slots = FakeSlots { faults: faults.clone(), ..FakeSlots::default() };
        Self { vm, wiring, faults, slots, iommu, space, sysfs: FakeSysfs::new(), events: Arc::default() }
    }

    pub fn pci_name(&self) -> HostDevice {
        self.sysfs.sysfs().pci_device(PCI_NAME).unwrap()
    }

    pub fn platform_name(&self) -> HostDevice {
        self.sysfs.sysfs().platform_device(PLATFORM_NAME).unwrap()
    }

    pub fn line(&self, spi: u32) -> Arc<GsiHandle> {
        let spi = Spi::new(spi).unwrap();
        self.vm.guest().configure_spi(spi, TriggerMode::Level).unwrap();
        Arc::new(self.wiring.router().claim_spi(spi).unwrap())
    }

    pub fn options(&self, line: Option<Arc<GsiHandle>>, resample: ResamplePath) -> PciOptions {
        let events = Arc::clone(&self.events);
        PciOptions {
            wiring: self.wiring.clone(),
            line: line.map(|line| (pci::IntxPin::A, line)),
            resample,
            slots: Arc::new(self.slots.clone()),
            on_root_bus: true,
            dma: true,
            device_id_base: 0,
            events: Arc::new(move |event| events.lock().unwrap().push(event)),
        }
    }

    /// A function on the guest's bus, its interrupts known as those of [`BDF`].
    pub fn function(
        &self,
        device: &FakeDevice,
        line: Option<Arc<GsiHandle>>,
    ) -> Result<Arc<VfioPciFunction>, Error> {
        self.function_of(&self.pci_name(), device, line)
    }

    /// The same for another of the host's devices.
    pub fn function_of(
        &self,
        host: &HostDevice,
        device: &FakeDevice,
        line: Option<Arc<GsiHandle>>,
    ) -> Result<Arc<VfioPciFunction>, Error> {
        self.iommu.add(host.name(), device.clone());
        let open: Arc<Device> = self.space.open(host)?;
        let function = VfioPciFunction::new(open, self.options(line, ResamplePath::Kernel))?;
        function.set_bdf(irq_types::Bdf::from_requester_id(BDF));
        Ok(function)
    }

    /// How often vector `event` has reached the guest.
    pub fn raised(&self, event: u32) -> u64 {
        self.vm.process();
        self.vm.raised(Interrupt::Intid(Lpi::new(FIRST_LPI + event).unwrap().intid()))
    }

    pub fn line_is_high(&self, spi: u32) -> bool {
        self.vm.process();
        self.vm.line_is_high(Spi::new(spi).unwrap())
    }

    /// The guest takes an interrupt on the line and ends it.
    pub fn take_line(&self) -> bool {
        self.vm.process();
        let taken = self.vm.guest().take();
        taken.is_some_and(|interrupt| {
            self.vm.guest().eoi(interrupt);
            self.vm.process();
            true
        })
    }
}

/// What a device's PCI function is like: NVMe as QEMU has it, with a capability of its vendor's.
pub struct Nvme {
    pub vectors: u16,
    pub can_grow: bool,
    pub table: u32,
    pub pending: u32,
    /// 1 is INTA.
    pub pin: u8,
}

impl Default for Nvme {
    fn default() -> Self {
        Self { vectors: 8, can_grow: false, table: 0x2000, pending: 0x3000, pin: 1 }
    }
}

pub const PM: u16 = 0x60;
pub const MSIX: u16 = 0x40;
pub const EXPRESS: u16 = 0x80;
pub const VENDOR: u16 = 0xc0;
pub const MSI: u16 = 0xd0;
pub const ADVANCED: u16 = 0xf0;

impl Nvme {
    pub fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 4096];
        let mut put = |at: u16, bytes: &[u8]| config[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
        put(0, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 2, 8, 1, 0, 0, 0x80, 0]);
        put(0x10, &[4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        put(0x2c, &[0xf4, 0x1a, 0, 0x11]);
        put(0x34, &[MSIX as u8]);
        put(0x3c, &[0, self.pin]);
        put(MSIX, &[0x11, PM as u8]);
        put(MSIX + 2, &(self.vectors - 1).to_le_bytes());
        put(MSIX + 4, &self.table.to_le_bytes());
        put(MSIX + 8, &self.pending.to_le_bytes());
        put(PM, &[1, EXPRESS as u8, 3, 0, 0, 0, 0, 0]);
        put(EXPRESS, &[0x10, VENDOR as u8, 2, 0, 0, 0, 0, 0x10]);
        put(EXPRESS + 0x0c, &[0x11, 0x4]);
        put(VENDOR, &[9, MSI as u8, 16, 1, 0xaa, 0xbb]);
        // 4 vectors, 64-bit, with masks.
        put(MSI, &[5, ADVANCED as u8, 0x84, 1]);
        // Transactions pending and a function level reset.
        put(ADVANCED, &[0x13, 0, 6, 3]);
        config
    }

    pub fn device(&self, rig: &Rig) -> FakeDevice {
        let bar = FakeRegion { contents: vec![0x5a; 0x4000], mappable: true, sparse: None };
        self.device_of(rig, self.config(), bar, FakeRegion::default())
    }

    /// The same with another configuration space, another BAR 0, another ROM.
    pub fn device_of(&self, rig: &Rig, config: Vec<u8>, bar: FakeRegion, rom: FakeRegion) -> FakeDevice {
        let ports = FakeRegion { contents: vec![0x11; 32], ..FakeRegion::default() };
        let none = FakeRegion::default;
        let config = FakeRegion { contents: config, ..FakeRegion::default() };
        let regions = vec![bar, none(), ports, none(), none(), none(), rom, config];
        let msix = FakeIrq { count: self.vectors.into(), level: false, can_grow: self.can_grow };
        let one = FakeIrq { count: 1, ..FakeIrq::default() };
        let irqs =
            [FakeIrq { count: 1, level: true, can_grow: true }, FakeIrq { count: 4, ..one }, msix, one, one];
        FakeDevice::new(rig.faults.clone(), PCI, regions, &irqs).unwrap()
    }
}

/// A PL031: one page of registers, one level line.
pub fn pl031(rig: &Rig) -> FakeDevice {
    let registers = FakeRegion { contents: vec![0x31; 0x1000], mappable: true, sparse: None };
    let line = FakeIrq { count: 1, level: true, can_grow: true };
    FakeDevice::new(rig.faults.clone(), AMBA, vec![registers], &[line]).unwrap()
}

/// The message of an event.
pub fn message(event: u32) -> MsiMessage {
    MsiMessage { address: TRANSLATER, data: event }
}

pub fn config32(function: &VfioPciFunction, at: u16) -> u32 {
    let mut bytes = [0; 4];
    function.read_config(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

pub fn set_config(function: &VfioPciFunction, at: u16, bytes: &[u8]) {
    function.write_config(at, bytes);
    // What the bus does after each write.
    function.placed(&function.decoded());
}

pub fn bar0() -> BarIndex {
    BarIndex::new(0).unwrap()
}

/// The guest's driver programs a vector and unmasks it.
pub fn program(function: &VfioPciFunction, table: u64, vector: u64, event: u32) {
    let entry = table + 16 * vector;
    function.write_bar(bar0(), entry, &TRANSLATER.to_le_bytes());
    function.write_bar(bar0(), entry + 8, &event.to_le_bytes());
}

pub fn mask(function: &VfioPciFunction, table: u64, vector: u64, masked: bool) {
    function.write_bar(bar0(), table + 16 * vector + 12, &u32::from(masked).to_le_bytes());
}

pub const COMMAND: u16 = 4;
pub const MSIX_CONTROL: u16 = MSIX + 2;
pub const ENABLE: [u8; 2] = [0, 0x80];
pub const ENABLE_MASKED: [u8; 2] = [0, 0xc0];

pub fn enable_memory(function: &VfioPciFunction) {
    set_config(function, 0x10, &0x2000_0000_u32.to_le_bytes());
    set_config(function, 0x14, &[0; 4]);
    set_config(function, COMMAND, &[6, 0]);
}
