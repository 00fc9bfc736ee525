// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `vgic` crate on real KVM: every kind of GIC is laid out, created, initialised, and mapped by the first run of a vCPU, which is
//! where KVM notices what is missing or overlaps.
//!
//! A test that this host cannot run prints `SKIP`, its name and the reason.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::ops::Range;
use std::sync::Arc;

use irq_types::{DeviceId, MsiMessage};
use irqchip::{AttrValue, Capabilities, Capability, CreateDevice, DeviceKind, Errno, MsiInjector, arm};
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{Kvm, VcpuFd};
use kvm_irqchip::KvmVm;
use vgic::{
    GicLayout, GicRequest, GicVersion, HostGic, InitializedVgic, MsiChoice, MsiConfig, VersionChoice, Vgic,
};

/// 16 MiB each, the first two below 4 GiB, the rest at addresses that a 36-bit guest still has. One holds 127 redistributors.
const WINDOWS: [Range<u64>; 5] = [
    0x0800_0000..0x0900_0000,
    0x3000_0000..0x3100_0000,
    0x8_0000_0000..0x8_0100_0000,
    0x8_2000_0000..0x8_2100_0000,
    0x8_4000_0000..0x8_4100_0000,
];

struct Machine {
    vm: KvmVm,
    vcpus: Vec<VcpuFd>,
}

impl Machine {
    /// A VM without anything, or why there is none.
    fn new() -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
        let vm = kvm.create_vm().map_err(|e| format!("KVM_CREATE_VM: {e}"))?;
        Ok(Self { vm: KvmVm::new(Arc::new(vm)), vcpus: Vec::new() })
    }

    fn host(&self) -> HostGic {
        HostGic::probe(&self.vm).unwrap()
    }

    fn create_vcpus(&mut self, count: u32) {
        let fd = self.vm.fd();
        let mut init = kvm_vcpu_init::default();
        fd.get_preferred_target(&mut init).unwrap();
        for id in 0..count {
            let vcpu = fd.create_vcpu(u64::from(id)).unwrap();
            vcpu.vcpu_init(&init).unwrap();
            self.vcpus.push(vcpu);
        }
    }

    /// What a VMM does.
    fn bring_up(&mut self, request: GicRequest) -> InitializedVgic {
        let config = request.resolve_on(&self.vm).unwrap();
        let layout = GicLayout::solve(&config, &WINDOWS).unwrap();
        let gic = Vgic::create(&self.vm, config).unwrap().set_addresses(layout).unwrap();
        self.create_vcpus(config.vcpus());
        gic.vcpus_final(config.vcpus()).unwrap().init().unwrap()
    }

    /// Runs each vCPU for no time at all. KVM maps the GIC before it looks at `immediate_exit` (Linux 6.12, `virt/kvm/kvm_main.c`,
    /// `kvm_vcpu_ioctl`, and `arch/arm64/kvm/arm.c`, `kvm_arch_vcpu_run_pid_change`), so that `EINTR` means: all is in its place.
    fn run_all(&mut self) {
        for (id, vcpu) in self.vcpus.iter_mut().enumerate() {
            vcpu.set_kvm_immediate_exit(1);
            let error = vcpu.run().unwrap_err();
            assert_eq!(Errno::new(error.errno()), Errno::EINTR, "vCPU {id}");
        }
    }
}

fn skip(test: &str, reason: impl std::fmt::Display) {
    println!("SKIP {test}: {reason}");
}

/// A machine on a host that has what `needed` asks for, or a line that says why not.
fn machine(test: &str, needed: impl Fn(HostGic) -> bool, what: &str) -> Option<Machine> {
    let machine = match Machine::new() {
        Ok(machine) => machine,
        Err(reason) => {
            skip(test, reason);
            return None;
        }
    };
    let host = machine.host();
    if !needed(host) {
        skip(test, format_args!("this needs {what}; KVM here offers {host}"));
        return None;
    }
    Some(machine)
}

/// Bits 31-24 Aff3, 23-16 Aff2, 15-8 Aff1, 7-0 Aff0 that KVM gives to a vCPU: sixteen to a cluster (Linux 6.12,
/// `arch/arm64/kvm/sys_regs.c`, `reset_mpidr`).
fn affinity(vcpu: u32) -> u32 {
    (vcpu & 0xf) | ((vcpu >> 4) & 0xff) << 8 | ((vcpu >> 12) & 0xff) << 16
}

/// GICR_TYPER: bits 63-32 the affinity, 23-8 the processor number, 4 whether it is the last of its run, 0 whether it has LPIs.
const GICR_TYPER: u32 = 0x8;

fn check_redistributors(gic: &InitializedVgic) {
    let mut vcpu = 0;
    for region in gic.layout().redistributor_regions() {
        for place in 0..region.count {
            let low = gic.read_redistributor(affinity(vcpu), GICR_TYPER).unwrap();
            let high = gic.read_redistributor(affinity(vcpu), GICR_TYPER + 4).unwrap();
            assert_eq!(high, affinity(vcpu), "affinity of vCPU {vcpu}");
            assert_eq!(low >> 8 & 0xffff, vcpu, "processor number of vCPU {vcpu}");
            let last = low >> 4 & 1 == 1;
            assert_eq!(last, place == region.count - 1, "vCPU {vcpu} is {place} of {region}");
            assert_eq!(low & 1 == 1, gic.config().its_count() > 0, "LPIs of vCPU {vcpu}");
            vcpu += 1;
        }
    }
    assert_eq!(vcpu, gic.config().vcpus());
}

fn many_vcpus(test: &str, vcpus: u32, counts: &[u32]) {
    let Some(mut machine) = machine(test, |host| host.v3, "a GICv3") else { return };
    let gic = machine.bring_up(GicRequest { vcpus, ..GicRequest::default() });
    let regions = gic.layout().redistributor_regions();
    assert_eq!(regions.iter().map(|region| region.count).collect::<Vec<_>>(), counts);
    check_redistributors(&gic);
    machine.run_all();
}

#[test]
fn gicv3_with_130_vcpus_in_two_regions() {
    many_vcpus("gicv3_with_130_vcpus_in_two_regions", 130, &[126, 4]);
}

#[test]
fn gicv3_with_512_vcpus_in_five_regions() {
    many_vcpus("gicv3_with_512_vcpus_in_five_regions", 512, &[126, 128, 128, 128, 2]);
}

#[test]
fn gicv3_whose_vcpus_came_first_has_the_same_redistributors() {
    let test = "gicv3_whose_vcpus_came_first_has_the_same_redistributors";
    let Some(mut machine) = machine(test, |host| host.v3, "a GICv3") else { return };
    let config = GicRequest { vcpus: 130, ..GicRequest::default() }.resolve_on(&machine.vm).unwrap();
    machine.create_vcpus(130);
    let layout = GicLayout::solve(&config, &WINDOWS).unwrap();
    let gic = Vgic::create(&machine.vm, config).unwrap().set_addresses(layout).unwrap();
    let gic = gic.vcpus_final(130).unwrap().init().unwrap();
    check_redistributors(&gic);
    machine.run_all();
}

#[test]
fn gicv2_with_8_vcpus_and_a_v2m_frame() {
    let test = "gicv2_with_8_vcpus_and_a_v2m_frame";
    let Some(mut machine) = machine(test, |host| host.v2, "a GICv2") else { return };
    let request = GicRequest { version: VersionChoice::V2, vcpus: 8, ..GicRequest::default() };
    let gic = machine.bring_up(request);
    assert_eq!(gic.device_kind(), DeviceKind::GicV2);
    assert!(matches!(gic.config().msi(), MsiConfig::V2m { .. }));
    assert_eq!(machine.vm.capability(Capability::MsiDeviceId).unwrap(), 0);
    // GICD_TYPER: bits 7-5 the CPUs but one, 4-0 the interrupts in blocks of 32 but one.
    let typer = gic.read_distributor(0x4).unwrap();
    assert_eq!(((typer >> 5 & 7) + 1, 32 * ((typer & 0x1f) + 1)), (8, gic.config().nr_irqs()));
    machine.run_all();
}

#[test]
fn a_gicv2_host_gives_auto_a_gicv2_and_v3_an_explanation() {
    let test = "a_gicv2_host_gives_auto_a_gicv2_and_v3_an_explanation";
    let Some(mut machine) = machine(test, |host| host.v2 && !host.v3, "a GICv2 and no GICv3") else { return };
    let refused = |request: GicRequest| request.resolve_on(&machine.vm).unwrap_err().to_string();
    let any = GicRequest::default();
    assert_eq!(
        refused(GicRequest { version: VersionChoice::V3, ..any }),
        "a GICv3 was asked for, but this host's KVM offers GICv2 only; ask for v2 or auto"
    );
    assert_eq!(
        refused(GicRequest { msi: MsiChoice::Its, ..any }),
        "an ITS was asked for, but it takes a GICv3, and this host's KVM offers GICv2 only; ask for v2m or auto MSIs"
    );
    assert_eq!(
        refused(GicRequest { vcpus: 9, ..any }),
        "a GICv2 serves 1 to 8 vCPUs, not 9 (a GICv3 serves 512, but this host's KVM offers GICv2 only)"
    );
    // All of this was asked of the same VM.
    let gic = machine.bring_up(any);
    assert_eq!(gic.config().version(), GicVersion::V2);
    machine.run_all();
}

#[test]
fn asking_leaves_no_trace() {
    let test = "asking_leaves_no_trace";
    let Some(mut machine) = machine(test, |host| host.v2 || host.v3, "a GIC") else { return };
    let host = machine.host();
    assert_eq!(machine.host(), host);
    // A GICv3 that was created to find out would answer EEXIST to the second of its kind, and to a GICv2 where the host has both.
    let version = if host.v2 { VersionChoice::V2 } else { VersionChoice::V3 };
    machine.bring_up(GicRequest { version, ..GicRequest::default() });
    machine.run_all();
}

#[test]
fn several_itses_each_answer_at_their_own_doorbell() {
    let test = "several_itses_each_answer_at_their_own_doorbell";
    let Some(mut machine) = machine(test, |host| host.its, "an ITS") else { return };
    let gic = machine.bring_up(GicRequest { its_count: 3, vcpus: 2, ..GicRequest::default() });
    assert_eq!(machine.vm.capability(Capability::MsiDeviceId).unwrap(), 1);
    let send = |address| machine.vm.signal_msi(MsiMessage { address, data: 0 }, Some(DeviceId::new(8)));
    for index in 0..3 {
        // GITS_TYPER.Physical: LPIs.
        assert_eq!(gic.read_its(index, 0x8).unwrap().unwrap() & 1, 1);
        // A message to an ITS that the guest has not enabled yet (`vgic_its_resolve_lpi`).
        let doorbell = gic.layout().its_doorbell(index).unwrap();
        assert_eq!(send(doorbell).unwrap_err().errno, Errno::EBUSY, "ITS {index}");
    }
    // Nobody is there.
    assert_eq!(send(0x4000_0040).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(gic.layout().its_doorbell(3), None);
    machine.run_all();
}

#[test]
fn a_gicv3_may_have_a_v2m_frame_or_no_msis() {
    let test = "a_gicv3_may_have_a_v2m_frame_or_no_msis";
    for msi in [MsiChoice::V2m, MsiChoice::None] {
        let Some(mut machine) = machine(test, |host| host.v3, "a GICv3") else { return };
        let request = GicRequest { version: VersionChoice::V3, msi, ..GicRequest::default() };
        let gic = machine.bring_up(request);
        check_redistributors(&gic);
        assert_eq!(machine.vm.capability(Capability::MsiDeviceId).unwrap(), 0);
        // GICD_TYPER.LPIS, which is how Linux decides between an ITS and a frame.
        assert_eq!(gic.read_distributor(0x4).unwrap() >> 17 & 1, 0);
        machine.run_all();
    }
}

#[test]
fn the_gic_has_the_interrupts_that_were_asked_for() {
    let test = "the_gic_has_the_interrupts_that_were_asked_for";
    for (spis, nr_irqs) in [(1, 64), (33, 96), (960, 992)] {
        let Some(mut machine) = machine(test, |host| host.v2 || host.v3, "a GIC") else { return };
        let gic = machine.bring_up(GicRequest { spis, msi: MsiChoice::None, ..GicRequest::default() });
        let typer = gic.read_distributor(0x4).unwrap();
        assert_eq!(32 * ((typer & 0x1f) + 1), nr_irqs, "for {spis} SPIs");
        assert_eq!(gic.ready().lines(), nr_irqs - 32);
        machine.run_all();
    }
}

/// The kernel's documentation says 1024. If this ever changes, a GIC can have 32 SPIs more (of which 28 exist).
#[test]
fn the_kernel_s_most_interrupts_are_992() {
    let test = "the_kernel_s_most_interrupts_are_992";
    let Some(machine) = machine(test, |host| host.v2 || host.v3, "a GIC") else { return };
    let kind = if machine.host().v3 { DeviceKind::GicV3 } else { DeviceKind::GicV2 };
    let gic = machine.vm.create_device(kind).unwrap();
    let set = |n| gic.set_attr(arm::NR_IRQS, AttrValue::U32(n)).map_err(|e| e.errno);
    assert_eq!(set(1024), Err(Errno::EINVAL));
    assert_eq!(set(992), Ok(()));
}
