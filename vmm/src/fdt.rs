// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device tree that tells the guest what machine it is on.
//!
//! Nodes follow the bindings in Linux's `Documentation/devicetree/bindings`, each named where it is written. The GIC's come from the
//! `vgic` crate.

use std::ops::Range;

use irq_types::{Ppi, Spi, TriggerMode};
use vfio_passthrough::platform::GuestNode;
use vgic::{GicLayout, GicPhandles};
use vm_fdt::{Error, FdtWriter};

use crate::gpio;
use crate::layout::{GPIO, RAM_BASE, RTC, SERIAL};

/// Writes the node of the PCI host bridge, which names the GIC's phandles.
pub type PciNode<'a> = &'a dyn Fn(&mut FdtWriter, &GicPhandles) -> Result<(), Error>;

/// What goes into the tree.
pub struct Machine<'a> {
    /// Bytes of memory from [`RAM_BASE`] on.
    pub memory: u64,
    /// Each vCPU's MPIDR_EL1.
    pub mpidrs: &'a [u64],
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Where the initial RAM disk is, in guest-physical addresses.
    pub initrd: Option<Range<u64>>,
    /// The interrupt controller.
    pub gic: &'a GicLayout,
    /// The serial port's line; level.
    pub serial: Spi,
    /// The GPIO controller's line; level.
    pub gpio: Spi,
    /// The performance monitor's line, if the guest has one.
    pub pmu: Option<Ppi>,
    /// Writes the PCI host bridge's node, if there is one.
    pub pci: Option<PciNode<'a>>,
    /// Platform devices of the host's.
    pub platform: &'a [GuestNode],
    /// Entropy for the guest's first moments: a seed for its random numbers, and one for where the kernel lies.
    pub seed: ([u8; 64], u64),
}

/// The affinity fields of MPIDR_EL1: what a `cpu` node's `reg` holds (binding `arm/cpus.yaml`).
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;
/// The clock that the serial port says it has: 16 × 115200, so that every standard rate is a whole divisor.
const SERIAL_CLOCK: u32 = 1_843_200;
/// How much goes through the serial port at one interrupt: its queue for input has so many bytes, and what is sent is gone when it is
/// written. A 16550A that says nothing has 16, and a driver that believes that takes four times the interrupts for its output.
const SERIAL_FIFO: u32 = 64;
/// The PL031's identification (Arm DDI 0224, section 3.3): the driver need not read it register by register.
const PL031_ID: u32 = 0x0004_1031;
/// Phandle of the fixed clock.
const CLOCK_PHANDLE: u32 = 1;
/// The first phandle that the GIC may use.
const GIC_PHANDLE: u32 = 16;
/// The first phandle that the host's platform devices may use.
const PLATFORM_PHANDLE: u32 = 0x1000;
/// Phandle of the GPIO controller.
const GPIO_PHANDLE: u32 = 2;
/// `KEY_POWER` (Linux, `include/uapi/linux/input-event-codes.h`).
const KEY_POWER: u32 = 116;

impl Machine<'_> {
    /// The tree as a blob.
    ///
    /// # Errors
    /// If a name or value cannot be written: a command line with a zero in it.
    pub fn build(&self) -> Result<Vec<u8>, Error> {
        let nodes = self.gic.fdt_nodes(GIC_PHANDLE);
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_string("model", "Doorbell")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", nodes.phandles().gic)?;
        self.chosen(&mut fdt)?;
        self.cpus(&mut fdt)?;
        let memory = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[RAM_BASE, self.memory])?;
        fdt.end_node(memory)?;
        nodes.write(&mut fdt)?;
        self.timer(&mut fdt)?;
        self.pmu(&mut fdt)?;
        self.psci(&mut fdt)?;
        self.clock(&mut fdt)?;
        self.serial(&mut fdt)?;
        self.rtc(&mut fdt)?;
        self.gpio(&mut fdt)?;
        Self::power_button(&mut fdt)?;
        if let Some(pci) = self.pci {
            pci(&mut fdt, nodes.phandles())?;
        }
        let mut phandle = PLATFORM_PHANDLE;
        for node in self.platform {
            node.write(&mut fdt, &mut phandle)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn chosen(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.cmdline)?;
        fdt.property_string("stdout-path", &format!("/serial@{:x}", SERIAL.start))?;
        fdt.property("rng-seed", &self.seed.0)?;
        fdt.property_u64("kaslr-seed", self.seed.1)?;
        if let Some(initrd) = &self.initrd {
            fdt.property_u64("linux,initrd-start", initrd.start)?;
            fdt.property_u64("linux,initrd-end", initrd.end)?;
        }
        fdt.end_node(chosen)
    }

    /// Bindings `arm/cpus.yaml`.
    fn cpus(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for mpidr in self.mpidrs {
            let affinity = mpidr & MPIDR_AFFINITY;
            let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_u64("reg", affinity)?;
            fdt.property_string("enable-method", "psci")?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)
    }

    /// Binding `timer/arm,arch_timer.yaml`: secure physical, non-secure physical, virtual and hypervisor timer, in this order, at the
    /// PPIs that KVM gives them by default (Linux 6.12, `arch/arm64/kvm/arch_timer.c`, `default_ppi`).
    fn timer(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let mut cells = Vec::new();
        for n in [13, 14, 11, 10] {
            if let Ok(ppi) = Ppi::new(n) {
                cells.extend(self.gic.config().ppi_cells(ppi, TriggerMode::Level));
            }
        }
        let timer = fdt.begin_node("timer")?;
        fdt.property_string("compatible", "arm,armv8-timer")?;
        fdt.property_array_u32("interrupts", &cells)?;
        fdt.property_null("always-on")?;
        fdt.end_node(timer)
    }

    /// Binding `arm/pmu.yaml`.
    fn pmu(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let Some(ppi) = self.pmu else { return Ok(()) };
        let pmu = fdt.begin_node("pmu")?;
        fdt.property_string("compatible", "arm,armv8-pmuv3")?;
        fdt.property_array_u32("interrupts", &self.gic.config().ppi_cells(ppi, TriggerMode::Level))?;
        fdt.end_node(pmu)
    }

    /// Binding `arm/psci.yaml`. The calls are KVM's, by HVC.
    #[expect(clippy::unused_self, reason = "one of a row")]
    fn psci(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let psci = fdt.begin_node("psci")?;
        fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
        fdt.property_string("method", "hvc")?;
        fdt.end_node(psci)
    }

    /// Binding `clock/fixed-clock.yaml`: what AMBA devices insist on.
    #[expect(clippy::unused_self, reason = "one of a row")]
    fn clock(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let clock = fdt.begin_node("apb-pclk")?;
        fdt.property_string("compatible", "fixed-clock")?;
        fdt.property_u32("#clock-cells", 0)?;
        fdt.property_u32("clock-frequency", 24_000_000)?;
        fdt.property_string("clock-output-names", "clk24mhz")?;
        fdt.property_phandle(CLOCK_PHANDLE)?;
        fdt.end_node(clock)
    }

    /// Binding `serial/8250.yaml`.
    fn serial(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let serial = fdt.begin_node(&format!("serial@{:x}", SERIAL.start))?;
        fdt.property_string("compatible", "ns16550a")?;
        fdt.property_array_u64("reg", &[SERIAL.start, SERIAL.end - SERIAL.start])?;
        fdt.property_u32("clock-frequency", SERIAL_CLOCK)?;
        fdt.property_u32("fifo-size", SERIAL_FIFO)?;
        // An interrupt for more output comes when nothing is left of the last. Without it, Linux fills 16 all the same.
        fdt.property_u32("tx-threshold", 0)?;
        fdt.property_array_u32("interrupts", &self.serial.fdt_cells(TriggerMode::Level))?;
        fdt.end_node(serial)
    }

    /// Binding `gpio/pl061-gpio.yaml`.
    fn gpio(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let gpio = fdt.begin_node(&format!("gpio@{:x}", GPIO.start))?;
        fdt.property_string_list("compatible", vec!["arm,pl061".into(), "arm,primecell".into()])?;
        fdt.property_array_u64("reg", &[GPIO.start, GPIO.end - GPIO.start])?;
        fdt.property_u32("clocks", CLOCK_PHANDLE)?;
        fdt.property_string("clock-names", "apb_pclk")?;
        fdt.property_u32("arm,primecell-periphid", gpio::PL061_ID)?;
        fdt.property_array_u32("interrupts", &self.gpio.fdt_cells(TriggerMode::Level))?;
        fdt.property_null("gpio-controller")?;
        fdt.property_u32("#gpio-cells", 2)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 2)?;
        fdt.property_phandle(GPIO_PHANDLE)?;
        fdt.end_node(gpio)
    }

    /// Binding `input/gpio-keys.yaml`.
    fn power_button(fdt: &mut FdtWriter) -> Result<(), Error> {
        let keys = fdt.begin_node("gpio-keys")?;
        fdt.property_string("compatible", "gpio-keys")?;
        let power = fdt.begin_node("button-power")?;
        fdt.property_string("label", "Power button")?;
        fdt.property_u32("linux,code", KEY_POWER)?;
        fdt.property_array_u32("gpios", &[GPIO_PHANDLE, u32::from(gpio::POWER_BUTTON), 0])?;
        fdt.end_node(power)?;
        fdt.end_node(keys)
    }

    /// Binding `rtc/arm,pl031.yaml`. No interrupt: this clock has no alarm.
    #[expect(clippy::unused_self, reason = "one of a row")]
    fn rtc(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let rtc = fdt.begin_node(&format!("rtc@{:x}", RTC.start))?;
        fdt.property_string_list("compatible", vec!["arm,pl031".into(), "arm,primecell".into()])?;
        fdt.property_array_u64("reg", &[RTC.start, RTC.end - RTC.start])?;
        fdt.property_u32("clocks", CLOCK_PHANDLE)?;
        fdt.property_string("clock-names", "apb_pclk")?;
        fdt.property_u32("arm,primecell-periphid", PL031_ID)?;
        fdt.end_node(rtc)
    }
}
