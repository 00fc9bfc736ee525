// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use proptest::prelude::*;

use super::*;

const VERSION_1: u64 = 1 << 32;
const OFFERED: u64 = VERSION_1 | 0b1011;

fn registers() -> CommonConfig {
    CommonConfig::new(OFFERED, 4, &[256, 64, 1])
}

fn read(registers: &CommonConfig, offset: u64, width: usize) -> u64 {
    let mut bytes = [0; 8];
    registers.read(offset, &mut bytes[..width], Live::default());
    u64::from_le_bytes(bytes)
}

fn write(registers: &mut CommonConfig, offset: u64, width: usize, value: u64) -> Effect {
    registers.write(offset, &value.to_le_bytes()[..width])
}

/// VIRTIO 1.3, section 4.1.4.3: offset, width, what it reads after a reset, what is written, what it reads then.
#[test]
fn each_field_is_where_the_specification_has_it() {
    let table = [
        ("device_feature_select", 0x00, 4, 0, 1, 1),
        ("device_feature", 0x04, 4, 0b1011, 0xffff, 0b1011),
        ("driver_feature_select", 0x08, 4, 0, 1, 1),
        ("driver_feature", 0x0c, 4, 0, 0x1234_5678, 0x1234_5678),
        ("config_msix_vector", 0x10, 2, 0xffff, 3, 3),
        ("config_msix_vector, none such", 0x10, 2, 0xffff, 4, 0xffff),
        ("num_queues", 0x12, 2, 3, 9, 3),
        ("device_status", 0x14, 1, 0, 1, 1),
        ("config_generation", 0x15, 1, 0, 7, 0),
        ("queue_select", 0x16, 2, 0, 2, 2),
        ("queue_size", 0x18, 2, 256, 128, 128),
        ("queue_msix_vector", 0x1a, 2, 0xffff, 1, 1),
        ("queue_msix_vector, none such", 0x1a, 2, 0xffff, 0x8000, 0xffff),
        ("queue_enable, before FEATURES_OK", 0x1c, 2, 0, 1, 0),
        ("queue_notify_off", 0x1e, 2, 0, 5, 0),
        ("queue_desc, low", 0x20, 4, 0, 0x9000_0000, 0x9000_0000),
        ("queue_desc, high", 0x24, 4, 0, 0x12, 0x12),
        ("queue_desc, whole", 0x20, 8, 0, 0x12_9000_0000, 0x12_9000_0000),
        ("queue_driver, low", 0x28, 4, 0, 0x9000_1000, 0x9000_1000),
        ("queue_driver, high", 0x2c, 4, 0, 0x13, 0x13),
        ("queue_device, low", 0x30, 4, 0, 0x9000_2000, 0x9000_2000),
        ("queue_device, high", 0x34, 4, 0, 0x14, 0x14),
        ("queue_notif_config_data", 0x38, 2, 0, 1, 0),
        ("queue_reset", 0x3a, 2, 0, 1, 0),
        ("beyond", 0x40, 4, 0, 1, 0),
        ("far beyond", u64::MAX - 3, 4, 0, 1, 0),
    ];
    for (field, offset, width, before, written, after) in table {
        let mut registers = registers();
        assert_eq!(read(&registers, offset, width), before, "{field} after a reset");
        let _ = write(&mut registers, offset, width, written);
        assert_eq!(read(&registers, offset, width), after, "{field} after writing {written:#x}");
    }
}

#[test]
fn queues_and_features_are_seen_through_their_selectors() {
    let mut registers = registers();
    for (queue, size) in [(0, 256), (1, 64), (2, 1), (3, 0), (0xffff, 0)] {
        write(&mut registers, 0x16, 2, queue);
        assert_eq!(read(&registers, 0x18, 2), size, "queue {queue}");
        assert_eq!(read(&registers, 0x1e, 2), if size > 0 { queue } else { 0 });
        // A queue that there is not takes nothing.
        write(&mut registers, 0x20, 8, 0x1000 * (queue + 1));
        assert_eq!(read(&registers, 0x20, 8), if size > 0 { 0x1000 * (queue + 1) } else { 0 });
    }
    for (select, bits) in [(0, 0b1011), (1, 1), (2, 0), (u64::from(u32::MAX), 0)] {
        write(&mut registers, 0x00, 4, select);
        assert_eq!(read(&registers, 0x04, 4), bits, "word {select}");
        write(&mut registers, 0x08, 4, select);
        write(&mut registers, 0x0c, 4, 0xffff_ffff);
        assert_eq!(read(&registers, 0x0c, 4), if select < 2 { 0xffff_ffff } else { 0 });
    }
    // Either half stays when the other one is written.
    for (select, value, others) in [(0, 0x1234, 0xffff_ffff), (1, 0x5678, 0x1234), (0, 0, 0x5678)] {
        write(&mut registers, 0x08, 4, select);
        write(&mut registers, 0x0c, 4, value);
        assert_eq!(read(&registers, 0x0c, 4), value);
        write(&mut registers, 0x08, 4, 1 - select);
        assert_eq!(read(&registers, 0x0c, 4), others);
    }
}

#[test]
fn any_bytes_can_be_read_and_only_whole_fields_written() {
    let mut registers = registers();
    write(&mut registers, 0x20, 8, 0x1122_3344_5566_7788);
    assert_eq!(read(&registers, 0x21, 2), 0x6677);
    assert_eq!(read(&registers, 0x26, 4), 0x1122);
    for (offset, width) in [(0x21, 4), (0x20, 2), (0x20, 1), (0x22, 4), (0x1e, 8), (0x1f, 8)] {
        write(&mut registers, offset, width, u64::MAX);
        assert_eq!(read(&registers, 0x20, 8), 0x1122_3344_5566_7788, "{width} bytes at {offset:#x}");
    }
    assert_eq!(registers.write(0x14, &[]), Effect::Nothing);
    for (offset, width, value, whole) in [
        (0x20, 4, 0x9000_0000, 0x1122_3344_9000_0000),
        (0x24, 4, 0x12, 0x12_9000_0000_u64),
        (0x20, 8, 0x2100_0000_0040, 0x2100_0000_0040),
    ] {
        write(&mut registers, offset, width, value);
        assert_eq!(read(&registers, 0x20, 8), whole, "{width} bytes at {offset:#x}");
    }
}

#[test]
fn live_state_is_shown() {
    let mut data = [0; 2];
    registers().read(0x14, &mut data, Live { generation: 9, needs_reset: true });
    assert_eq!(data, [NEEDS_RESET, 9]);
}

fn negotiated() -> CommonConfig {
    let mut registers = registers();
    write(&mut registers, 0x14, 1, u64::from(ACKNOWLEDGE));
    write(&mut registers, 0x14, 1, u64::from(ACKNOWLEDGE | DRIVER));
    write(&mut registers, 0x08, 4, 1);
    write(&mut registers, 0x0c, 4, 1);
    write(&mut registers, 0x14, 1, u64::from(ACKNOWLEDGE | DRIVER | FEATURES_OK));
    assert_eq!(read(&registers, 0x14, 1), u64::from(ACKNOWLEDGE | DRIVER | FEATURES_OK));
    registers
}

#[test]
fn an_enabled_queue_stays_as_it_is() {
    let mut registers = negotiated();
    // What cannot be a split ring cannot be enabled: section 2.7.
    let table = [
        (256, 0x1000, 0x2000, 0x3000, true),
        (1, 0x10, 0x2, 0x4, true),
        (0, 0x1000, 0x2000, 0x3000, false),
        (100, 0x1000, 0x2000, 0x3000, false),
        (512, 0x1000, 0x2000, 0x3000, false),
        (64, 0x1008, 0x2000, 0x3000, false),
        (64, 0x1000, 0x2001, 0x3000, false),
        (64, 0x1000, 0x2000, 0x3002, false),
    ];
    for (size, descriptors, available, used, possible) in table {
        let mut registers = registers.clone();
        write(&mut registers, 0x18, 2, size);
        write(&mut registers, 0x20, 8, descriptors);
        write(&mut registers, 0x28, 8, available);
        write(&mut registers, 0x30, 8, used);
        write(&mut registers, 0x1c, 2, 1);
        assert_eq!(
            read(&registers, 0x1c, 2),
            u64::from(possible),
            "{size} {descriptors:#x} {available:#x} {used:#x}"
        );
    }
    write(&mut registers, 0x1c, 2, 2);
    assert_eq!(read(&registers, 0x1c, 2), 0, "only 1 enables");
    write(&mut registers, 0x1c, 2, 1);
    for (offset, width, value) in
        [(0x18, 2, 8), (0x1c, 2, 0), (0x20, 8, 0x5000), (0x28, 4, 0x5000), (0x34, 4, 1)]
    {
        let before = read(&registers, offset, width);
        write(&mut registers, offset, width, value);
        assert_eq!(read(&registers, offset, width), before, "{offset:#x}");
    }
    write(&mut registers, 0x14, 1, 0);
    assert_eq!(read(&registers, 0x1c, 2), 0);
}

/// A driver's writes, sensible ones more often than not.
fn writes() -> impl Strategy<Value = Vec<(u64, usize, u64)>> {
    let status = prop_oneof![Just(0u64), Just(1), Just(3), Just(11), Just(15), Just(0x8f), 0..256u64];
    let one = prop_oneof![
        8 => status.prop_map(|value| (0x14, 1, value)),
        4 => (0..3u64).prop_map(|value| (0x08, 4, value)),
        4 => prop_oneof![Just(1u64), Just(0), Just(0b1011), Just(0xffff_ffff)].prop_map(|value| (0x0c, 4, value)),
        2 => (0..4u64).prop_map(|value| (0x16, 2, value)),
        2 => Just((0x1c, 2, 1)),
        2 => (prop_oneof![Just(0x10u64), Just(0x1a)], 0..6u64).prop_map(|(offset, vector)| (offset, 2, vector)),
        2 => (0..0x48u64, prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], any::<u64>()),
    ];
    proptest::collection::vec(one, 0..60)
}

proptest! {
    /// Whatever a driver writes, the status only ever is what it may be, and the transport hears of each start and each reset once.
    #[test]
    fn the_status_is_never_what_it_must_not_be(writes in writes()) {
        let mut registers = registers();
        let mut running = false;
        let mut agreed = None;
        for (offset, width, value) in writes {
            let before = registers.status();
            let effect = write(&mut registers, offset, width, value);
            let status = registers.status();
            match effect {
                Effect::Activate => {
                    prop_assert!(!running, "started twice without a reset");
                    prop_assert_eq!(status & FAILED, 0, "the driver has given up");
                    running = true;
                }
                Effect::Reset => {
                    running = false;
                    agreed = None;
                    prop_assert_eq!(status, 0);
                    prop_assert!(registers.queues().iter().all(|queue| !queue.enabled && queue.vector == NO_VECTOR));
                    prop_assert_eq!(registers.features(), 0);
                    prop_assert_eq!(registers.image(Live::default()), self::registers().image(Live::default()));
                }
                Effect::Nothing | Effect::Vectors => {}
            }
            prop_assert_eq!(running, status & DRIVER_OK != 0);
            prop_assert_eq!(status & NEEDS_RESET, 0, "the driver cannot set it");
            prop_assert!(effect == Effect::Reset || before & !status == 0, "no bit is taken back but by a reset");
            if status & DRIVER_OK != 0 {
                prop_assert!(status & FEATURES_OK != 0);
            }
            if status & FEATURES_OK != 0 {
                prop_assert!(status & DRIVER != 0);
                let features = registers.features();
                prop_assert_eq!(features & VERSION_1, VERSION_1);
                prop_assert_eq!(features & !OFFERED, 0);
                prop_assert_eq!(*agreed.get_or_insert(features), features, "what was agreed on stays");
            }
            for queue in registers.queues() {
                prop_assert!(!queue.enabled || queue.is_possible());
                prop_assert!(!queue.enabled || status & FEATURES_OK != 0);
                prop_assert!(queue.vector < 4 || queue.vector == NO_VECTOR);
            }
        }
    }
}
