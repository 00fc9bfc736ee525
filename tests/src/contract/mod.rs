// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contract between KVM and the crates above it, as tests that run on the fake kernel and on the real one.
//!
//! Each function in the modules below states one rule and takes a [`Host`] to try it on. `tests/contract_fake.rs` runs all of them on
//! [`fake_host`]'s imaginary hosts, `tests/contract_kvm.rs` on the machine's own KVM. So a difference between the two is a failing
//! test, and whoever tests against the fake may believe it.
//!
//! A rule that says "nothing arrives" is not checked by waiting for a while: taking an irqfd off its eventfd waits for all that it has
//! started (`flush_work` in the kernel's `irqfd_shutdown`), so what has not arrived by then does not arrive.

pub mod cpu_interfaces;
pub mod fake_host;
pub mod fixture;
pub mod gic_addresses;
pub mod gic_fields;
pub mod gic_lifecycle;
pub mod gic_redistributors;
pub mod gic_registers;
pub mod ioevents;
pub mod irqfds;
pub mod its;
pub mod its_registers;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod kvm_guest;
pub mod kvm_host;
pub(crate) mod kvm_memory;
pub mod levels;
pub mod lines;
pub mod lpis;
pub mod routes;

use irq_types::{DeviceId, EventId, Lpi, TriggerMode};
use irqchip::{DeviceControl, DeviceKind, Errno, InterruptVm, IoAddress};

/// What a rule is about, and so what a host must have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Any in-kernel interrupt controller.
    Irqchip,
    /// A GIC of any kind.
    Gic,
    /// A GICv2.
    GicV2,
    /// A GICv3.
    GicV3,
    /// Both kinds of GIC, to choose from.
    BothGics,
    /// An ITS, and with it a GICv3.
    Its,
    /// x86's irqchips.
    X86,
}

/// The interrupt controllers of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irqchip {
    /// A GIC of this kind.
    Gic(DeviceKind),
    /// Two PICs and an IOAPIC.
    X86,
}

/// Somewhere to make VMs.
pub trait Host {
    /// How messages call it.
    fn name(&self) -> String;

    /// Whether the rule can be tried here, or why not.
    ///
    /// # Errors
    /// What is missing.
    fn offers(&self, need: Need) -> Result<(), String>;

    /// A VM with nothing in it and 40 bits of guest-physical addresses.
    fn vm(&self) -> Box<dyn ContractVm>;

    /// The kinds of irqchip that a VM here can have.
    fn irqchips(&self) -> Vec<Irqchip> {
        let kinds = [
            (Need::GicV2, Irqchip::Gic(DeviceKind::GicV2)),
            (Need::GicV3, Irqchip::Gic(DeviceKind::GicV3)),
            (Need::X86, Irqchip::X86),
        ];
        kinds.into_iter().filter(|(need, _)| self.offers(*need).is_ok()).map(|(_, kind)| kind).collect()
    }

    /// The kinds of GIC among them.
    fn gics(&self) -> Vec<DeviceKind> {
        self.irqchips()
            .into_iter()
            .filter_map(|irqchip| match irqchip {
                Irqchip::Gic(kind) => Some(kind),
                Irqchip::X86 => None,
            })
            .collect()
    }
}

/// What a guest finds when it asks its interrupt controller what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// An input of the irqchip: pin of the GIC or of the IOAPIC.
    Line(u32),
    /// A private interrupt, by its INTID.
    Private(u32),
    /// An LPI, by its INTID.
    Lpi(u32),
    /// A message to x86's local APIC, by its vector.
    Message(u8),
}

/// A VM with vCPUs and a guest, as far as the rules need them.
pub trait ContractVm: InterruptVm {
    /// `KVM_CREATE_VCPU`, and on arm64 `KVM_ARM_VCPU_INIT`.
    ///
    /// # Errors
    /// The kernel's.
    fn create_vcpu(&self, id: u32) -> Result<(), Errno>;

    /// `KVM_RUN`, until the guest gives a sign.
    ///
    /// # Errors
    /// The kernel's.
    fn run_vcpu(&self, id: u32) -> Result<(), Errno>;

    /// x86: the guest sets up a pin of the IOAPIC. (A GIC is set up through its registers, on either kernel.)
    fn configure_ioapic_pin(&self, pin: u32, trigger: TriggerMode);

    /// The guest makes an event of a device an LPI, and enables it.
    fn map_event(
        &self,
        gic: &dyn DeviceControl,
        its: &dyn DeviceControl,
        device: DeviceId,
        event: EventId,
        lpi: Lpi,
    );

    /// The guest enables or disables an LPI that [`map_event`](Self::map_event) has made.
    fn enable_lpi(&self, its: &dyn DeviceControl, device: DeviceId, event: EventId, lpi: Lpi, enabled: bool);

    /// The guest takes a mapping back.
    fn unmap_event(&self, its: &dyn DeviceControl, device: DeviceId, event: EventId);

    /// Keeps a vCPU running until `done` says so.
    fn while_running(&self, id: u32, done: &mut dyn FnMut() -> bool);

    /// vCPU 0 acknowledges the interrupt that is there, if one is.
    fn take(&self, irqchip: Irqchip) -> Option<Taken>;

    /// Whether the interrupt that vCPU 0 took last awaits its end. Always, on hardware; a KVM whose x86 guests run without the processor's
    /// help (the out-of-tree kvm_pvm) ends them as it delivers them.
    fn awaits_end(&self, irqchip: Irqchip, taken: Taken) -> bool;

    /// vCPU 0 ends the interrupt that it took last.
    fn end(&self, irqchip: Irqchip, taken: Taken);

    /// vCPU 0 writes. Whether the write stayed in the kernel.
    fn write(&self, address: IoAddress, value: u64, length: u32) -> bool;
}

/// One rule.
pub type Contract = fn(&dyn Host);

/// Tries a rule on each host that has what it needs, and says `SKIP` and why where none has. Whether it was tried.
pub fn check(hosts: &[Box<dyn Host>], name: &str, need: Need, contract: Contract) -> bool {
    let mut reasons = Vec::new();
    let mut tried = false;
    for host in hosts {
        match host.offers(need) {
            Ok(()) => {
                println!("on {}", host.name());
                contract(&**host);
                tried = true;
            }
            Err(reason) => reasons.push(reason),
        }
    }
    if !tried {
        println!("SKIP {need:?}/{name}: {}", reasons.join("; "));
    }
    tried
}

/// Hands every rule to a macro, as `module::name Need;`.
#[macro_export]
macro_rules! for_each_contract {
    ($use:ident) => {
        $use! {
            gic_lifecycle::a_second_gic_exists_already Gic;
            gic_lifecycle::a_gic_of_the_other_kind_exists_already BothGics;
            gic_lifecycle::testing_for_a_device_creates_none Gic;
            gic_lifecycle::a_device_that_the_host_lacks_is_enodev Irqchip;
            gic_lifecycle::a_gic_comes_before_the_first_run Gic;
            gic_lifecycle::a_gic_narrows_the_number_of_vcpus Gic;
            gic_lifecycle::nine_vcpus_are_too_many_for_a_gicv2 BothGics;
            gic_lifecycle::the_number_of_interrupts_has_rules Gic;
            gic_lifecycle::the_number_of_interrupts_is_set_once Gic;
            gic_lifecycle::initialisation_freezes_256_interrupts Gic;
            gic_lifecycle::initialisation_needs_neither_vcpus_nor_addresses Gic;
            gic_lifecycle::initialising_twice_is_once Gic;
            gic_lifecycle::no_vcpu_after_initialisation Gic;
            gic_lifecycle::a_gicv3_must_be_initialised_before_it_runs GicV3;
            gic_lifecycle::a_gicv2_is_initialised_by_running GicV2;
            gic_lifecycle::running_without_addresses_kills_the_vm Gic;
            gic_lifecycle::a_vm_that_is_complete_runs Gic;
            gic_lifecycle::attributes_are_known_by_kind Gic;
            gic_addresses::an_unset_address_reads_as_all_ones Gic;
            gic_addresses::an_address_is_set_once Gic;
            gic_addresses::addresses_are_aligned Gic;
            gic_addresses::addresses_lie_within_the_guests_memory Gic;
            gic_addresses::a_value_is_needed Gic;
            gic_addresses::blocks_that_overlap_kill_the_vm_when_it_runs GicV2;
            gic_redistributors::region_and_regions_do_not_mix GicV3;
            gic_redistributors::regions_come_in_order GicV3;
            gic_redistributors::a_region_has_a_count_and_no_flags GicV3;
            gic_redistributors::regions_do_not_overlap GicV3;
            gic_redistributors::the_single_region_keeps_off_the_distributor GicV3;
            gic_redistributors::the_single_region_ends_within_the_guests_memory GicV3;
            gic_redistributors::regions_read_back GicV3;
            gic_redistributors::too_little_room_kills_the_vm_when_it_runs GicV3;
            gic_redistributors::vcpus_fill_the_regions_in_order GicV3;
            gic_redistributors::a_hundred_and_thirty_vcpus_lie_in_three_regions GicV3;
            gic_registers::a_gicv3s_registers_wait_for_initialisation GicV3;
            gic_registers::touching_a_gicv2s_registers_initialises_it GicV2;
            gic_registers::a_register_needs_its_vcpu Gic;
            gic_registers::registers_are_busy_while_a_vcpu_runs Gic;
            gic_registers::registers_lie_where_the_architecture_has_them Gic;
            gic_registers::the_last_redistributor_says_so GicV3;
            gic_registers::spis_come_as_edge_and_disabled Gic;
            gic_registers::enable_bits_are_set_and_cleared_apart Gic;
            gic_registers::the_revision_is_all_that_iidr_lets_change Gic;
            gic_registers::typer_tells_the_number_of_interrupts Gic;
            gic_registers::a_gicv3_restores_pending_bits_as_a_whole GicV3;
            gic_registers::levels_are_saved_apart_from_pending_bits GicV3;
            gic_fields::what_is_no_register_reads_as_zero Gic;
            gic_fields::a_distributor_is_enabled_by_one_bit Gic;
            gic_fields::private_interrupts_are_each_vcpus_own Gic;
            gic_fields::a_gicv3s_distributor_has_no_private_interrupts GicV3;
            gic_fields::active_bits_are_set_and_cleared_apart Gic;
            gic_fields::priorities_have_five_bits Gic;
            gic_fields::an_spi_is_routed_by_three_levels_of_affinity GicV3;
            gic_fields::a_gicv2s_targets_are_the_vcpus_that_there_are GicV2;
            gic_fields::a_gicv2s_groups_wait_for_the_revision GicV2;
            gic_fields::a_gicv3s_interrupts_come_in_group_1 GicV3;
            gic_fields::a_gicv2_tells_its_number_of_vcpus GicV2;
            gic_fields::a_gicv3_says_what_it_is GicV3;
            gic_fields::a_redistributor_tells_its_vcpus_affinity GicV3;
            gic_fields::revision_2_does_not_say_that_lpis_can_be_disabled GicV3;
            cpu_interfaces::a_gicv2s_cpu_interface_keeps_the_bits_that_it_has GicV2;
            cpu_interfaces::a_gicv3s_cpu_interface_has_system_registers GicV3;
            cpu_interfaces::a_gicv3s_cpu_interface_keeps_the_bits_that_it_has GicV3;
            cpu_interfaces::there_are_as_many_active_priorities_as_the_host_has GicV3;
            cpu_interfaces::a_gicv3s_control_register_tells_what_the_host_has GicV3;
            cpu_interfaces::a_common_binary_point_is_group_0s GicV3;
            cpu_interfaces::a_gicv3_is_reached_by_system_registers_only GicV3;
            its::device_ids_are_a_property_of_the_vm Its;
            its::an_its_needs_no_gic_to_be_created Its;
            its::the_address_of_an_its_has_rules Its;
            its::its_registers_wait_for_the_address Its;
            its::its_registers_have_rules Its;
            its::initialising_an_its_does_nothing Its;
            its::an_msi_without_device_id_is_refused Its;
            its::an_msi_without_its_is_enodev Gic;
            its::an_msi_without_irqchip_is_refused Irqchip;
            its::an_msi_beside_the_its_is_refused Its;
            its::an_msi_to_a_disabled_its_is_busy Its;
            its::an_msi_that_the_guest_has_not_mapped_is_blocked Its;
            its::an_msi_becomes_its_lpi Its;
            its::an_msi_irqfd_becomes_its_lpi Its;
            its::an_msi_route_without_device_id_is_accepted_and_lost Its;
            its::a_device_of_id_zero_is_found_without_saying_so Its;
            its::a_disabled_lpi_is_pending Its;
            its::an_event_that_was_unmapped_is_blocked Its;
            its::an_its_is_busy_while_a_vcpu_runs Its;
            its::an_x86_message_is_a_vector X86;
            its::each_device_has_events_of_its_own Its;
            its_registers::an_its_says_what_it_is Its;
            its_registers::an_its_has_a_queue Its;
            its_registers::an_its_has_two_tables Its;
            its_registers::an_its_needs_its_queue_and_its_tables Its;
            its_registers::an_enabled_its_keeps_its_queue_and_its_tables Its;
            its_registers::an_enabled_its_works_its_queue_off Its;
            its_registers::resetting_an_its_forgets_everything Its;
            its_registers::what_is_mapped_goes_with_its_table Its;
            its_registers::what_is_mapped_goes_with_another_table Its;
            lpis::there_are_no_lpis_without_its Its;
            lpis::lpis_have_one_property_table_and_a_pending_table_for_each_vcpu Its;
            lpis::tables_of_lpis_are_cached Its;
            lpis::lpis_that_wait_are_dropped_when_their_vcpu_disables_lpis Its;
            lpis::translations_are_forgotten_when_something_is_disabled Its;
            lpis::enabling_lpis_reads_the_pending_table Its;
            routes::a_table_may_have_as_many_routes_as_the_limit Irqchip;
            routes::a_gsi_lies_below_the_limit Irqchip;
            routes::a_gsi_goes_to_an_irqchip_once Irqchip;
            routes::a_gsi_is_a_line_or_a_message Irqchip;
            routes::a_pin_may_have_several_gsis Irqchip;
            routes::a_gsi_may_go_to_several_irqchips X86;
            routes::irqchips_and_pins_have_ends Irqchip;
            routes::initialisation_replaces_the_table Gic;
            routes::the_default_table_has_every_spi Gic;
            routes::a_refused_table_leaves_the_old_one Irqchip;
            routes::a_pin_beyond_the_vms_interrupts_is_accepted_and_lost Gic;
            routes::a_changed_route_moves_a_bound_irqfd Irqchip;
            routes::an_empty_table_is_a_table Irqchip;
            routes::a_table_needs_no_gic Gic;
            routes::a_table_needs_an_irqchip X86;
            irqfds::an_irqfd_waits_for_initialisation Gic;
            irqfds::an_irqfd_needs_an_irqchip X86;
            irqfds::a_signal_is_an_interrupt Irqchip;
            irqfds::a_burst_before_it_is_taken_is_one_interrupt Irqchip;
            irqfds::a_counter_that_is_not_zero_fires_at_once Irqchip;
            irqfds::an_eventfd_raises_one_gsi Irqchip;
            irqfds::an_eventfd_is_known_through_any_descriptor Irqchip;
            irqfds::several_eventfds_may_raise_one_gsi Irqchip;
            irqfds::what_is_no_eventfd_is_refused Irqchip;
            irqfds::deassigning_what_is_not_assigned_is_no_error Irqchip;
            irqfds::deassigning_goes_by_eventfd_and_gsi Irqchip;
            irqfds::deassigning_empties_the_counter Irqchip;
            irqfds::a_gsi_without_route_is_accepted_and_lost Irqchip;
            irqfds::any_gsi_is_accepted Irqchip;
            levels::a_resampled_line_stays_up_until_the_eoi Irqchip;
            levels::a_device_that_still_wants_attention_raises_the_line_again Irqchip;
            levels::resamplers_share_a_line Irqchip;
            levels::the_last_resampler_takes_the_line_down Irqchip;
            levels::an_edge_spi_reports_no_eoi Gic;
            levels::an_edge_pin_of_the_ioapic_reports_its_eoi X86;
            levels::a_plain_irqfd_leaves_a_level_spi_up Gic;
            levels::a_plain_irqfd_that_fires_when_armed_pulses_a_level_spi Gic;
            levels::a_resampler_must_be_an_eventfd Irqchip;
            levels::the_eoi_goes_by_the_last_route_of_a_pin Irqchip;
            lines::a_line_needs_a_gic Gic;
            lines::a_gicv3s_lines_wait_for_initialisation GicV3;
            lines::driving_a_line_initialises_a_gicv2 GicV2;
            lines::a_line_ends_with_the_vms_interrupts Gic;
            lines::an_edge_line_is_pending_once_it_was_high Gic;
            lines::a_pending_line_waits Gic;
            lines::enabling_the_distributor_wakes_nothing Gic;
            lines::a_level_line_is_pending_while_it_is_high Gic;
            lines::a_ppi_needs_its_vcpu Gic;
            lines::a_ppi_is_its_vcpus Gic;
            lines::a_timers_ppi_is_left_alone Gic;
            lines::x86_has_no_spis_and_ppis X86;
            lines::irqchips_are_created_once X86;
            lines::arm_has_no_irqchip_without_device Gic;
            ioevents::a_write_rings Irqchip;
            ioevents::a_length_is_a_power_of_two Irqchip;
            ioevents::any_length_has_no_datamatch Irqchip;
            ioevents::a_range_does_not_wrap Irqchip;
            ioevents::two_for_the_same_write_exist_already Irqchip;
            ioevents::values_tell_ioevents_apart Irqchip;
            ioevents::deassigning_names_the_same_write Irqchip;
            ioevents::what_is_no_eventfd_rings_nothing Irqchip;
            ioevents::a_value_wider_than_the_write_never_rings Irqchip;
            ioevents::ports_and_memory_are_apart X86;
            ioevents::capabilities_say_so Irqchip;
        }
    };
}
