// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, EventId, Lpi};
use irqchip::{DeviceControl, Errno, IoAddress};
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuFd, VmFd};

use super::super::kvm_memory::Memory;
use super::super::{Irqchip, Taken};
use super::{Sign, run};

/// Guest memory, 64 KiB from address 0, and what lies in it.
const CODE: u64 = 0x1000;
const IDT: u64 = 0x2000;
const STUBS: u64 = 0x3000;
const GDT: u64 = 0x4000;
const STACK_TOP: u64 = 0x8000;

/// Ports that the guest reports at.
const TAKEN: u16 = 0x10;
const ENDED: u16 = 0x11;
const NOTHING: u16 = 0x12;
const DONE: u16 = 0x13;

/// The program: 32-bit, flat, no paging.
#[rustfmt::skip]
const PROGRAM: [u8; 59] = [
    // main: wait for interrupts, and say when there are none
    0xfb,                   // sti
    0x90,                   // nop (1:)
    0xe6, 0x12,             // out %al, $0x12
    0xeb, 0xfb,             // jmp 1b
    // write1, write2, write4: eax to (ebx)
    0x88, 0x03,             // mov %al, (%ebx)
    0xe6, 0x13,             // out %al, $0x13
    0x66, 0x89, 0x03,       // mov %ax, (%ebx)
    0xe6, 0x13,             // out %al, $0x13
    0x89, 0x03,             // mov %eax, (%ebx)
    0xe6, 0x13,             // out %al, $0x13
    // out1, out2, out4: eax to port bx
    0x89, 0xda,             // mov %ebx, %edx
    0xee,                   // out %al, (%dx)
    0xe6, 0x13,             // out %al, $0x13
    0x89, 0xda,             // mov %ebx, %edx
    0x66, 0xef,             // out %ax, (%dx)
    0xe6, 0x13,             // out %al, $0x13
    0x89, 0xda,             // mov %ebx, %edx
    0xef,                   // out %eax, (%dx)
    0xe6, 0x13,             // out %al, $0x13
    // handler: the vector is on the stack; report it, end it at the local APIC, report that, begin anew. (No iret: where KVM has to
    // emulate instructions it has none for protected mode.)
    0x8b, 0x04, 0x24,       // mov (%esp), %eax
    0xe6, 0x10,             // out %al, $0x10
    0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0, // movl $0, 0xfee000b0
    0xe6, 0x11,             // out %al, $0x11
    0xbc, 0x00, 0x80, 0, 0, // mov $0x8000, %esp
    0xeb, 0xc5,             // jmp main
];
const MAIN: u64 = CODE;
const WRITES: [u64; 3] = [CODE + 0x06, CODE + 0x0a, CODE + 0x0f];
const OUTS: [u64; 3] = [CODE + 0x13, CODE + 0x18, CODE + 0x1e];
/// Any `out %al, $0x13`.
const IDLE: u64 = CODE + 0x08;
const HANDLER: u64 = CODE + 0x23;

/// The local APIC, the IOAPIC, the PICs' masks.
const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const PIC_MASKS: [u16; 2] = [0x21, 0xa1];

/// The vector of IOAPIC pin 0.
const FIRST_VECTOR: u32 = 0x30;
const PINS: u32 = 24;

/// The guest of one VM.
#[derive(Debug)]
pub(in super::super) struct Guest {
    /// Kept for the VM.
    _memory: Memory,
    booted: bool,
    serving: bool,
}

impl Guest {
    pub(in super::super) fn new(vm: &VmFd) -> Self {
        let memory = Memory::attach(vm, 0, 0x1_0000);
        memory.write(CODE, &PROGRAM);
        for (at, descriptor) in (GDT..).step_by(8).zip([0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]) {
            memory.write(at, &descriptor.to_le_bytes());
        }
        for vector in 0..256u64 {
            // push $vector; jmp handler
            let stub = STUBS + 10 * vector;
            let mut code = vec![0x68];
            code.extend_from_slice(&u32::try_from(vector).unwrap().to_le_bytes());
            code.push(0xe9);
            let distance = i32::try_from(HANDLER).unwrap() - i32::try_from(stub + 10).unwrap();
            code.extend_from_slice(&distance.to_le_bytes());
            memory.write(stub, &code);
            // A 32-bit interrupt gate at selector 8.
            let gate = (stub & 0xffff) | (8 << 16) | (0x8e00 << 32) | ((stub >> 16) << 48);
            memory.write(IDT + 8 * vector, &gate.to_le_bytes());
        }
        Self { _memory: memory, booted: false, serving: false }
    }

    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "arm64 has something to do here")]
    pub(in super::super) fn prepare(&mut self, _id: u32, _vcpu: &VcpuFd) -> Result<(), Errno> {
        Ok(())
    }

    fn boot(&mut self, vcpu: &mut VcpuFd) {
        if self.booted {
            return;
        }
        self.booted = true;
        let mut sregs = vcpu.get_sregs().unwrap();
        let flat = |selector, type_| kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = flat(8, 0xb);
        let data = flat(0x10, 3);
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 3 * 8 - 1);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 256 * 8 - 1);
        sregs.cr0 |= 1;
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_regs { rip: MAIN, rsp: STACK_TOP, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).unwrap();
    }

    /// With an irqchip: the PICs are masked, the local APIC is on, its LINT0 (the PICs' way in) is masked.
    fn serve(&mut self, vcpu: &mut VcpuFd) {
        self.boot(vcpu);
        if self.serving {
            return;
        }
        self.serving = true;
        for port in PIC_MASKS {
            assert!(self.write(vcpu, IoAddress::Pio(port), 0xff, 1));
        }
        assert!(self.write(vcpu, IoAddress::Mmio(LAPIC + 0xf0), 0x1ff, 4));
        assert!(self.write(vcpu, IoAddress::Mmio(LAPIC + 0x350), 0x1_0000, 4));
    }

    /// Runs the program from `entry` until it is done, and puts the registers back. Whether nobody outside the kernel saw anything.
    fn excursion(&mut self, vcpu: &mut VcpuFd, entry: u64, ebx: u64, eax: u64) -> Result<bool, Errno> {
        self.boot(vcpu);
        let saved = vcpu.get_regs().unwrap();
        let regs = kvm_regs { rip: entry, rbx: ebx, rax: eax, rflags: 2, ..saved };
        vcpu.set_regs(&regs).unwrap();
        let mut silent = true;
        while !matches!(run(vcpu)?, Sign::Port { port: DONE, .. }) {
            silent = false;
        }
        vcpu.set_regs(&saved).unwrap();
        Ok(silent)
    }

    pub(in super::super) fn run(&mut self, _id: u32, vcpu: &mut VcpuFd) -> Result<(), Errno> {
        self.excursion(vcpu, IDLE, 0, 0).map(|_| ())
    }

    pub(in super::super) fn write(
        &mut self,
        vcpu: &mut VcpuFd,
        address: IoAddress,
        value: u64,
        length: u32,
    ) -> bool {
        let size = length.trailing_zeros() as usize;
        let (entry, target) = match address {
            IoAddress::Mmio(address) => (WRITES[size], address),
            IoAddress::Pio(port) => (OUTS[size], u64::from(port)),
        };
        self.excursion(vcpu, entry, target, value).unwrap()
    }

    pub(in super::super) fn configure_ioapic_pin(&mut self, vcpu: &mut VcpuFd, pin: u32, level: bool) {
        self.serve(vcpu);
        let entry = (FIRST_VECTOR + pin) | (u32::from(level) << 15);
        // The upper half, a destination of APIC 0, then the lower half, unmasked.
        for (index, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, entry)] {
            assert!(self.write(vcpu, IoAddress::Mmio(IOAPIC), u64::from(index), 4));
            assert!(self.write(vcpu, IoAddress::Mmio(IOAPIC + 0x10), u64::from(value), 4));
        }
    }

    pub(in super::super) fn take(&mut self, vcpu: &mut VcpuFd, _irqchip: Irqchip) -> Option<Taken> {
        self.serve(vcpu);
        match run(vcpu) {
            Ok(Sign::Port { port: TAKEN, value }) if (FIRST_VECTOR..FIRST_VECTOR + PINS).contains(&value) => {
                Some(Taken::Line(value - FIRST_VECTOR))
            }
            Ok(Sign::Port { port: TAKEN, value }) => Some(Taken::Message(u8::try_from(value).unwrap())),
            Ok(Sign::Port { port: NOTHING, .. }) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the local APIC has the vector in service.
    pub(in super::super) fn awaits_end(vcpu: &VcpuFd, taken: Taken) -> bool {
        let vector = match taken {
            Taken::Line(pin) => FIRST_VECTOR + pin,
            Taken::Message(vector) => u32::from(vector),
            Taken::Private(_) | Taken::Lpi(_) => panic!("x86 has no {taken:?}"),
        };
        // The ISR: 32 vectors every sixteen bytes from 0x100 on.
        let byte = 0x100 + (vector / 32 * 16 + vector % 32 / 8) as usize;
        vcpu.get_lapic().unwrap().regs[byte].cast_unsigned() & (1 << (vector % 8)) != 0
    }

    pub(in super::super) fn end(vcpu: &mut VcpuFd, _taken: Taken) {
        assert!(matches!(run(vcpu), Ok(Sign::Port { port: ENDED, .. })));
    }

    pub(in super::super) fn map_event(
        &mut self,
        _gic: &dyn DeviceControl,
        _its: &dyn DeviceControl,
        _device: DeviceId,
        _event: EventId,
        _lpi: Lpi,
    ) {
        panic!("x86 has no ITS");
    }

    pub(in super::super) fn enable_lpi(
        &self,
        _its: &dyn DeviceControl,
        _device: DeviceId,
        _event: EventId,
        _lpi: Lpi,
        _enabled: bool,
    ) {
        panic!("x86 has no LPIs");
    }

    pub(in super::super) fn unmap_event(&self, _its: &dyn DeviceControl, _device: DeviceId, _event: EventId) {
        panic!("x86 has no ITS");
    }
}
