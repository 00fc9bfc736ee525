// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the request to a GIC that runs, on the fake kernel: it refuses what the real one refuses.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::error::Error as _;
use std::ops::Range;

use irqchip::fake::{Call, FakeHost, FakeVm, Fault};
use irqchip::{AttrValue, Capabilities, Capability, CreateDevice, DeviceKind, Errno, Operation, arm};
use vgic::{
    ConfigError, GicConfig, GicLayout, GicRequest, GicVersion, HostGic, InitializedVgic, MsiChoice,
    MsiConfig, VersionChoice, Vgic, VgicError,
};

/// 16 MiB below RAM, which hold 126 redistributors beside a distributor and an ITS, and plenty above.
const WINDOWS: [Range<u64>; 2] = [0x0800_0000..0x0900_0000, 0x80_0000_0000..0x90_0000_0000];

fn both_versions() -> FakeHost {
    FakeHost::arm64_gicv3_and_v2()
}

/// What a VMM does. The errors of the three stages are boxed: tests of errors look at the stage they are about.
fn bring_up(vm: &FakeVm, request: GicRequest) -> Result<InitializedVgic, Box<dyn std::error::Error>> {
    let config = request.resolve_on(vm)?;
    let layout = GicLayout::solve(&config, &WINDOWS)?;
    let gic = Vgic::create(vm, config)?.set_addresses(layout)?;
    for id in 0..config.vcpus() {
        vm.create_vcpu(id).map_err(std::io::Error::from)?;
    }
    Ok(gic.vcpus_final(config.vcpus())?.init()?)
}

#[test]
fn every_kind_of_gic_comes_to_life_and_its_vcpus_run() {
    let any = GicRequest::default();
    let table = [
        (FakeHost::arm64_gicv3(), any),
        (FakeHost::arm64_gicv3(), GicRequest { its_count: 3, vcpus: 4, ..any }),
        (FakeHost::arm64_gicv3(), GicRequest { msi: MsiChoice::V2m, vcpus: 2, ..any }),
        (FakeHost::arm64_gicv3(), GicRequest { msi: MsiChoice::None, spis: 960, ..any }),
        (FakeHost::arm64_gicv3(), GicRequest { vcpus: 130, ..any }),
        (FakeHost::arm64_gicv3(), GicRequest { vcpus: 512, ..any }),
        (FakeHost::arm64_gicv2(), GicRequest { vcpus: 8, ..any }),
        (both_versions(), GicRequest { version: VersionChoice::V2, ..any }),
    ];
    for (host, request) in table {
        let vm = host.vm();
        let gic = bring_up(&vm, request).unwrap();
        let config = *gic.config();
        assert_eq!(gic.ready().vm_id(), CreateDevice::vm_id(&vm));
        assert_eq!(gic.ready().lines(), config.spis(), "{config}");
        assert_eq!(vm.routes().len(), config.spis() as usize, "the default table of {config}");
        let needs_device_id = vm.capability(Capability::MsiDeviceId).unwrap();
        assert_eq!(needs_device_id, u32::from(config.its_count() > 0), "{config}");
        // The first run maps everything: an overlap, or a vCPU without redistributor, fails here.
        for id in 0..config.vcpus() {
            assert_eq!(vm.run_vcpu(id), Ok(()), "vCPU {id} of {config}");
        }
    }
}

#[test]
fn vcpus_may_also_come_before_the_gic() {
    let vm = FakeHost::arm64_gicv3().vm();
    let config = GicRequest { vcpus: 130, ..GicRequest::default() }.resolve_on(&vm).unwrap();
    for id in 0..130 {
        vm.create_vcpu(id).unwrap();
    }
    let layout = GicLayout::solve(&config, &WINDOWS).unwrap();
    let gic = Vgic::create(&vm, config).unwrap().set_addresses(layout).unwrap();
    let gic = gic.vcpus_final(130).unwrap().init().unwrap();
    assert_eq!(gic.layout().redistributor_regions().len(), 2);
    for id in 0..130 {
        assert_eq!(vm.run_vcpu(id), Ok(()), "vCPU {id}");
    }
    // GICD_TYPER.ITLinesNumber: 32 * (N + 1) interrupts.
    let typer = gic.read_distributor(0x4).unwrap();
    assert_eq!(32 * ((typer & 0x1f) + 1), gic.config().nr_irqs());
}

#[test]
fn a_gicv3_with_an_its_costs_ten_calls() {
    let vm = FakeHost::arm64_gicv3().vm();
    let gic = bring_up(&vm, GicRequest::default()).unwrap();
    let set = |kind, attr, value| Operation::SetAttr { kind, attr, value };
    let (v3, its) = (DeviceKind::GicV3, DeviceKind::Its);
    let region = arm::redist_region(0x0803_0000, 1, 0);
    let want = [
        Operation::TestDevice { kind: v3 },
        Operation::TestDevice { kind: its },
        Operation::CreateDevice { kind: v3 },
        Operation::CreateDevice { kind: its },
        set(v3, arm::NR_IRQS, AttrValue::U32(96)),
        set(v3, arm::ADDR_V3_DIST, AttrValue::U64(0x0800_0000)),
        set(v3, arm::ADDR_V3_REDIST_REGION, AttrValue::U64(region)),
        set(its, arm::ADDR_ITS, AttrValue::U64(0x0801_0000)),
        set(v3, arm::CTRL_INIT, AttrValue::None),
        set(its, arm::CTRL_INIT, AttrValue::None),
    ];
    let calls: Vec<Operation> = vm.calls().into_iter().filter_map(|call| call.operation).collect();
    assert_eq!(calls, want);
    assert_eq!(gic.device_kind(), v3);
}

#[test]
fn a_gicv2_with_a_frame_costs_seven_calls() {
    let vm = FakeHost::arm64_gicv2().vm();
    bring_up(&vm, GicRequest::default()).unwrap();
    let calls: Vec<Call> =
        vm.calls().into_iter().map(|call| call.call).filter(|&c| c != Call::CreateVcpu).collect();
    use Call::{CreateDevice, SetAttr, TestDevice};
    assert_eq!(calls, [TestDevice, TestDevice, CreateDevice, SetAttr, SetAttr, SetAttr, SetAttr]);
}

#[test]
fn probing_leaves_no_trace() {
    let vm = both_versions().vm();
    assert_eq!(HostGic::probe(&vm), Ok(HostGic { v2: true, v3: true, its: true }));
    let request = GicRequest::default();
    assert_eq!(request.resolve_on(&vm).unwrap().version(), GicVersion::V3);
    assert_eq!(vm.count(Call::CreateDevice), 0);
    // A GICv3 that was created to find out would make this fail.
    bring_up(&vm, GicRequest { version: VersionChoice::V2, ..request }).unwrap();
}

#[test]
fn auto_falls_back_to_gicv2_on_a_gicv2_host() {
    let vm = FakeHost::arm64_gicv2().vm();
    let gic = bring_up(&vm, GicRequest { vcpus: 8, ..GicRequest::default() }).unwrap();
    assert_eq!(gic.config().version(), GicVersion::V2);
    assert!(matches!(gic.config().msi(), MsiConfig::V2m { .. }));
    let spis = gic.v2m_frame().unwrap().spis();
    assert_eq!((spis.first().get(), spis.count()), (64, 64));
}

#[test]
fn both_ways_of_resolving_agree() {
    let hosts = [
        FakeHost::arm64_gicv2(),
        FakeHost::arm64_gicv3(),
        both_versions(),
        FakeHost { its: false, ..FakeHost::arm64_gicv3() },
        FakeHost { gic_v3: false, its: false, ..FakeHost::arm64_gicv3() },
    ];
    for host in hosts {
        let probed = HostGic::probe(&host.vm()).unwrap();
        for version in [VersionChoice::Auto, VersionChoice::V2, VersionChoice::V3] {
            for msi in [MsiChoice::Auto, MsiChoice::Its, MsiChoice::V2m, MsiChoice::None] {
                for vcpus in [0, 1, 8, 9, 512, 513] {
                    let request = GicRequest { version, msi, vcpus, ..GicRequest::default() };
                    let vm = host.vm();
                    assert_eq!(request.resolve_on(&vm), request.resolve(&probed), "{request:?} on {probed}");
                    assert_eq!(vm.count(Call::CreateDevice), 0);
                }
            }
        }
    }
}

/// The errors that an error comes from, itself first.
fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect()
}

#[test]
fn every_call_may_fail_and_the_error_names_it() {
    for request in [
        GicRequest { vcpus: 130, its_count: 2, ..GicRequest::default() },
        GicRequest { version: VersionChoice::V2, ..GicRequest::default() },
    ] {
        let vm = both_versions().vm();
        bring_up(&vm, request).unwrap();
        let ours = |vm: &FakeVm| {
            let calls = vm.calls().into_iter().filter(|call| call.call != Call::CreateVcpu);
            calls.collect::<Vec<_>>()
        };
        let all = ours(&vm);
        for (n, call) in all.iter().enumerate() {
            let before = all[..n].iter().filter(|earlier| earlier.call == call.call).count();
            let vm = both_versions().vm();
            vm.inject(Fault::next(call.call, Errno::ENOMEM).after(before as u64));
            let error = bring_up(&vm, request).unwrap_err();
            let operation = call.operation.clone().unwrap();
            let chain = chain(&*error);
            let root = irqchip::Error::new(operation, Errno::ENOMEM).to_string();
            assert_eq!(chain.last(), Some(&root), "call {n} failed");
            assert!(chain.len() >= 2, "{chain:?} says what it was for");
            for (outer, inner) in chain.iter().zip(&chain[1..]) {
                assert!(!outer.contains(inner.as_str()), "{outer:?} repeats {inner:?}");
            }
            let made = ours(&vm);
            assert_eq!(made.len(), n + 1, "nothing was tried after call {n} had failed");
        }
    }
}

#[test]
fn an_error_reads_from_what_was_wanted_down_to_the_errno() {
    let vm = FakeHost { ipa_bits: 36, ..FakeHost::arm64_gicv3() }.vm();
    let error = bring_up(&vm, GicRequest { vcpus: 130, ..GicRequest::default() }).unwrap_err();
    assert_eq!(
        chain(&*error),
        [
            "the redistributor region 2 of 2 (4 redistributors at 0x8000000000..0x8000080000) cannot be placed",
            "cannot set the GICv3's redistributor region (ADDR/V3_REDIST_REGION) [group 0, attribute 0x5] to 0x40008000000001: \
             Argument list too long (E2BIG)",
        ]
    );
    let vm = FakeHost::arm64_gicv3().vm();
    let _gic = vm.create_device(DeviceKind::GicV3).unwrap();
    let error = bring_up(&vm, GicRequest::default()).unwrap_err();
    assert_eq!(
        chain(&*error),
        ["the VM gets no GICv3", "cannot create the in-kernel GICv3: File exists (EEXIST)"]
    );
}

fn addressed(vm: &FakeVm, config: GicConfig) -> Vgic<vgic::Addressed> {
    let layout = GicLayout::solve(&config, &WINDOWS).unwrap();
    Vgic::create(vm, config).unwrap().set_addresses(layout).unwrap()
}

#[test]
fn the_number_of_vcpus_is_held_to_the_plan() {
    for created in [0, 1, 3, 513] {
        let vm = FakeHost::arm64_gicv3().vm();
        let config = GicRequest { vcpus: 2, ..GicRequest::default() }.resolve_on(&vm).unwrap();
        let error = addressed(&vm, config).vcpus_final(created).unwrap_err();
        assert_eq!(error, VgicError::VcpuCount { planned: 2, created });
    }
}

#[test]
fn a_layout_serves_the_configuration_it_was_made_for() {
    let vm = FakeHost::arm64_gicv3().vm();
    let config = GicRequest { vcpus: 2, ..GicRequest::default() }.resolve_on(&vm).unwrap();
    let other = GicRequest { vcpus: 1, ..GicRequest::default() }.resolve_on(&vm).unwrap();
    let layout = GicLayout::solve(&other, &WINDOWS).unwrap();
    let error = Vgic::create(&vm, config).unwrap().set_addresses(layout).unwrap_err();
    assert_eq!(error, VgicError::LayoutOfAnotherGic { layout: other, gic: config });
    assert_eq!(
        error.to_string(),
        "the layout is that of a GICv3 with an ITS, 1 vCPU, 64 SPIs, but the GIC is a GICv3 with an ITS, 2 vCPUs, 64 SPIs"
    );
}

#[test]
fn a_kernel_without_regions_gets_its_one_region_the_old_way() {
    // The third attribute set is the region, after NR_IRQS and the distributor.
    let unknown = Fault::next(Call::SetAttr, Errno::ENXIO).after(2);
    let vm = FakeHost::arm64_gicv3().vm();
    vm.inject(unknown);
    bring_up(&vm, GicRequest { vcpus: 2, ..GicRequest::default() }).unwrap();
    assert_eq!(vm.run_vcpu(1), Ok(()));
    let calls = vm.calls();
    let is_old_way = |operation: &Operation| {
        let value = AttrValue::U64(0x0803_0000);
        *operation == Operation::SetAttr { kind: DeviceKind::GicV3, attr: arm::ADDR_V3_REDIST, value }
    };
    assert!(calls.iter().filter_map(|call| call.operation.as_ref()).any(is_old_way));

    // Two regions cannot be had the old way.
    let vm = FakeHost::arm64_gicv3().vm();
    vm.inject(unknown);
    let error = bring_up(&vm, GicRequest { vcpus: 130, ..GicRequest::default() }).unwrap_err();
    assert!(error.to_string().starts_with("the redistributor region 1 of 2 (126 redistributors"), "{error}");
}

#[test]
fn after_the_initialisation_there_can_be_no_more_vcpus() {
    let vm = FakeHost::arm64_gicv3().vm();
    bring_up(&vm, GicRequest::default()).unwrap();
    assert_eq!(vm.create_vcpu(1), Err(Errno::EBUSY));
}

#[test]
fn a_question_that_the_kernel_refuses_is_no_no() {
    let vm = FakeHost::arm64_gicv3().vm();
    vm.inject(Fault::next(Call::TestDevice, Errno::EMFILE));
    let error = GicRequest::default().resolve_on(&vm).unwrap_err();
    assert!(matches!(&error, ConfigError::Probe(source) if source.errno == Errno::EMFILE), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("Too many open files (EMFILE)"));
}

#[test]
fn registers_can_be_looked_at_and_say_which_redistributor_is_whose() {
    let vm = FakeHost::arm64_gicv3().vm();
    let gic = bring_up(&vm, GicRequest { vcpus: 2, ..GicRequest::default() }).unwrap();
    // GICR_TYPER: bits 23-8 the processor number, 0 LPIs.
    for vcpu in [0, 1] {
        let typer = gic.read_redistributor(vcpu, 0x8).unwrap();
        assert_eq!(typer & 0x00ff_ff01, vcpu << 8 | 1, "vCPU {vcpu}");
    }
    assert_eq!(gic.read_redistributor(2, 0x8).unwrap_err().errno, Errno::EINVAL);
    assert!(gic.read_its(0, 0x8).unwrap().is_ok());
    assert!(gic.read_its(1, 0x8).is_none());
}

#[test]
fn saving_an_its_s_tables_is_one_call_and_only_for_an_its_that_is_there() {
    let vm = FakeHost::arm64_gicv3().vm();
    let gic = bring_up(&vm, GicRequest::default()).unwrap();
    vm.forget_calls();
    assert_eq!(gic.save_its_tables(0), Some(Ok(())));
    assert_eq!(gic.save_its_tables(1), None);
    let calls: Vec<_> = vm.calls().into_iter().filter_map(|call| call.operation).collect();
    let (kind, attr) = (DeviceKind::Its, arm::CTRL_ITS_SAVE_TABLES);
    assert_eq!(calls, [Operation::SetAttr { kind, attr, value: AttrValue::None }]);
    vm.inject(Fault::next(Call::SetAttr, Errno::EACCES));
    assert_eq!(gic.save_its_tables(0).unwrap().unwrap_err().errno, Errno::EACCES);
}
