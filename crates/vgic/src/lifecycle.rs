// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irqchip::{AttrValue, CreateDevice, DeviceControl, DeviceKind, Errno, IrqchipReady, arm};

use crate::{Frame, GicConfig, GicLayout, GicVersion, InitializedVgic, VgicError};

/// A GIC on its way to life. `State` is how far it has come: [`Created`], [`Addressed`], [`VcpusFinal`]; after that it is an
/// [`InitializedVgic`]. Each step consumes the state before it, so that none can be left out, repeated or swapped.
#[derive(Debug)]
#[must_use = "a GIC that is not initialised delivers no interrupt"]
pub struct Vgic<State> {
    gic: Box<dyn DeviceControl>,
    its: Vec<Box<dyn DeviceControl>>,
    state: State,
}

/// The devices exist, and the GIC knows how many interrupts it has.
#[derive(Debug)]
pub struct Created {
    config: GicConfig,
}

/// All registers have their addresses.
#[derive(Debug)]
pub struct Addressed {
    layout: GicLayout,
}

/// All vCPUs exist.
#[derive(Debug)]
pub struct VcpusFinal {
    layout: GicLayout,
}

impl Vgic<Created> {
    /// Creates the devices of `config` on `vm`: the GIC, then its ITSes, and tells the GIC how many interrupts it has.
    ///
    /// No vCPU of the VM has run yet. Creating it before the vCPUs lets KVM hold them to the GIC's limit one by one.
    ///
    /// The ITSes come before the GIC's initialisation, because that is where KVM sets up direct injection (GICv4), once for
    /// all vCPUs, if there is an ITS by then (Linux 6.12, `arch/arm64/kvm/vgic/vgic-init.c`, `vgic_init`). From here on the VM's
    /// `KVM_CAP_MSI_DEVID` is 1.
    ///
    /// # Errors
    /// When the kernel refuses: `EEXIST` if the VM has a GIC already, `EBUSY` if a vCPU has run, `ENODEV` if the host cannot,
    /// `E2BIG` if there are more vCPUs than it serves.
    pub fn create<V: CreateDevice + ?Sized>(vm: &V, config: GicConfig) -> Result<Self, VgicError> {
        let create = |kind| vm.create_device(kind).map_err(|source| VgicError::Create { kind, source });
        let gic = create(config.version().device_kind())?;
        let its = (0..config.its_count()).map(|_| create(DeviceKind::Its)).collect::<Result<Vec<_>, _>>()?;
        let nr_irqs = config.nr_irqs();
        gic.set_attr(arm::NR_IRQS, AttrValue::U32(nr_irqs))
            .map_err(|source| VgicError::NrIrqs { nr_irqs, source })?;
        Ok(Self { gic, its, state: Created { config } })
    }

    /// Gives every block of registers its address.
    ///
    /// # Errors
    /// If `layout` was not made for this GIC's configuration, and when the kernel refuses: `E2BIG` beyond the VM's
    /// guest-physical addresses, `EINVAL` if a region collides with another one.
    pub fn set_addresses(self, layout: GicLayout) -> Result<Vgic<Addressed>, VgicError> {
        if *layout.config() != self.state.config {
            return Err(VgicError::LayoutOfAnotherGic { layout: *layout.config(), gic: self.state.config });
        }
        let (distributor, attr) = match layout.config().version() {
            GicVersion::V2 => (layout.distributor(), arm::ADDR_V2_DIST),
            GicVersion::V3 => (layout.distributor(), arm::ADDR_V3_DIST),
        };
        place(&*self.gic, attr, distributor.base, Frame::Distributor(distributor))?;
        if let Some(interface) = layout.cpu_interface() {
            place(&*self.gic, arm::ADDR_V2_CPU, interface.base, Frame::CpuInterface(interface))?;
        }
        place_redistributors(&*self.gic, &layout)?;
        let of = self.its.len();
        for (index, (its, &region)) in self.its.iter().zip(layout.its_frames()).enumerate() {
            place(&**its, arm::ADDR_ITS, region.base, Frame::Its { index, of, region })?;
        }
        Ok(Vgic { gic: self.gic, its: self.its, state: Addressed { layout } })
    }
}

impl Vgic<Addressed> {
    /// Declares that the VM's vCPUs exist, `count` of them, and that no more will come: KVM answers `EBUSY` to the creation of
    /// a vCPU once the GIC is initialised.
    ///
    /// # Errors
    /// If `count` is not the number that the GIC was configured for. A vCPU without a redistributor would only be noticed when it
    /// runs, and redistributors without a vCPU are a region in which the guest finds nothing.
    pub fn vcpus_final(self, count: u32) -> Result<Vgic<VcpusFinal>, VgicError> {
        let layout = self.state.layout;
        let planned = layout.config().vcpus();
        if count != planned {
            return Err(VgicError::VcpuCount { planned, created: count });
        }
        Ok(Vgic { gic: self.gic, its: self.its, state: VcpusFinal { layout } })
    }
}

impl Vgic<VcpusFinal> {
    /// Completes the initialisation, of the GIC first and of its ITSes then. Now the VM's routing table is the default one:
    /// each GSI below the number of SPIs goes to the pin of the same number.
    ///
    /// An ITS's initialisation does nothing in Linux 6.12, and mapped its registers in Linux 4.8. It is part of the
    /// contract in both, and comes after the ITS's address.
    ///
    /// # Errors
    /// When the kernel refuses: `EBUSY` while a vCPU is being created, `ENOMEM`.
    pub fn init(self) -> Result<InitializedVgic, VgicError> {
        let layout = self.state.layout;
        let ready =
            IrqchipReady::init_vgic(&*self.gic, layout.config().spis()).map_err(VgicError::InitGic)?;
        let of = self.its.len();
        for (index, its) in self.its.iter().enumerate() {
            its.set_attr(arm::CTRL_INIT, AttrValue::None).map_err(|source| VgicError::InitIts {
                index,
                of,
                source,
            })?;
        }
        Ok(InitializedVgic::new(self.gic, self.its, layout, ready))
    }
}

fn place(
    device: &dyn DeviceControl,
    attr: irqchip::DeviceAttr,
    value: u64,
    frame: Frame,
) -> Result<(), VgicError> {
    device.set_attr(attr, AttrValue::U64(value)).map_err(|source| VgicError::Place { frame, source })
}

/// Regions in index order, as the kernel wants them. A kernel before Linux 4.18 does not know regions; there a single one is
/// given the old way, in which its size follows from the number of vCPUs. Trying costs no call where the kernel is newer;
/// asking would.
fn place_redistributors(gic: &dyn DeviceControl, layout: &GicLayout) -> Result<(), VgicError> {
    let regions = layout.redistributor_regions();
    let of = regions.len();
    for ((index, &region), number) in regions.iter().enumerate().zip(0..) {
        let frame = Frame::Redistributors { index, of, region };
        let value = arm::redist_region(region.base, region.count, number);
        match place(gic, arm::ADDR_V3_REDIST_REGION, value, frame) {
            Err(VgicError::Place { source, .. }) if source.errno == Errno::ENXIO && of == 1 => {
                place(gic, arm::ADDR_V3_REDIST, region.base, frame)?;
            }
            other => other?,
        }
    }
    Ok(())
}
