/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* What the guest does: commands one after the other, and interrupts while it serves. */
#include "metal.h"

/* The registers that the distributor has for SPIs and the private frame for the rest, at the same offsets on both kinds of GIC. */
#define GICD_ISENABLER 0x100
#define GICD_ICENABLER 0x180
#define GICD_ICFGR 0xc00

/* PSCI (Arm DEN0022), 64-bit calling convention, by HVC. */
#define PSCI_SYSTEM_OFF 0x84000008ul
#define PSCI_CPU_ON 0xc4000003ul

/* edu's registers (QEMU, docs/specs/edu.rst). */
#define EDU_STATUS 0x24
#define EDU_RAISE 0x60
#define EDU_ACKNOWLEDGE 0x64

struct mailbox *mailbox;
static struct gic gic;
/* The edu device's registers, and how often its handler is to raise again. */
static u64 edu, edu_again;

static u64 psci(u64 function, u64 a, u64 b, u64 c)
{
	register u64 x0 asm("x0") = function;
	register u64 x1 asm("x1") = a;
	register u64 x2 asm("x2") = b;
	register u64 x3 asm("x3") = c;

	asm volatile("hvc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3) : : "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11",
		     "x12", "x13", "x14", "x15", "x16", "x17", "memory");
	return x0;
}

void fail(u64 why)
{
	for (;;)
		write64(CONSOLE_FAILURE, why);
}

void unexpected_exception(u64 esr, u64 elr, u64 far)
{
	mailbox->exception[0] = esr;
	mailbox->exception[1] = elr;
	mailbox->exception[2] = far;
	barrier();
	fail(esr);
}

/* One item from each device on the line that has any. */
static void serve_line(u32 intid, u64 kind)
{
	struct device *device = mailbox->device[intid];
	u32 n, found = 0;

	for (n = 0; n < 2; n++) {
		u64 handled = device[n].handled;

		if (handled == LOAD(device[n].posted))
			continue;
		found = 1;
		STORE(device[n].handled, handled + 1);
		if (kind != KIND_LOWERED)
			continue;
		while (LOAD(mailbox->lowered[intid]) != handled + 1)
			asm volatile("yield");
	}
	if (!found)
		mailbox->cpu[this_cpu()].causeless++;
}

static void serve_edu(void)
{
	u32 why = read32(edu + EDU_STATUS);

	if (!why)
		mailbox->cpu[this_cpu()].causeless++;
	write32(edu + EDU_ACKNOWLEDGE, why);
	if (edu_again) {
		edu_again--;
		write32(edu + EDU_RAISE, 1);
	}
}

static u32 slot_of(u32 intid)
{
	return intid < LPI_BASE ? intid : intid - LPI_BASE + WIRE_SLOTS;
}

static void serve_interrupt(u32 intid)
{
	u32 slot = slot_of(intid);
	u64 *count = &mailbox->count[this_cpu()][slot];

	if (slot >= SLOTS)
		fail(intid);
	/* A signal that comes from here on is another interrupt; of all before, this one knows. */
	STORE(mailbox->seen[slot], LOAD(mailbox->sent[slot]));
	if (mailbox->kind[slot] == KIND_EDU)
		serve_edu();
	else if (mailbox->kind[slot] != KIND_EDGE)
		serve_line(intid, mailbox->kind[slot]);
	STORE(*count, *count + 1);
}

void take_interrupts(void)
{
	struct cpu *cpu = &mailbox->cpu[this_cpu()];
	u32 intid, acknowledged;

	for (;;) {
		acknowledged = gic.acknowledge(&intid);
		if (intid >= 1020 && intid < 1024) {
			if (intid != 1023)
				cpu->special++;
			cpu->visits++;
			return;
		}
		serve_interrupt(intid);
		/* Whoever hears of the end finds what was written before it. */
		barrier();
		gic.end(acknowledged);
	}
}

static u64 frame_of(u32 intid)
{
	return intid < 32 ? gic.private_frame() : mailbox->distributor;
}

static void enable(u32 intid, u64 enabled)
{
	u64 reg = frame_of(intid) + (enabled ? GICD_ISENABLER : GICD_ICENABLER);

	write32(reg + intid / 32 * 4, 1u << (intid % 32));
}

static void set_up_wire(u32 intid, u64 kind, u32 cpu)
{
	u64 reg = frame_of(intid) + GICD_ICFGR + intid / 16 * 4;
	u32 edge = 2u << (intid % 16 * 2);

	/* The configuration of an enabled interrupt must not change. */
	enable(intid, 0);
	write32(reg, kind == KIND_EDGE ? read32(reg) | edge : read32(reg) & ~edge);
	if (intid >= 32)
		gic.route(intid, cpu);
	mailbox->kind[intid] = kind;
	barrier();
	enable(intid, 1);
}

static void serve(struct cpu *cpu)
{
	asm volatile("msr daifclr, #2" : : : "memory");
	/* The test rings again until it is heard, so a word that comes between the look and the sleep is not missed. */
	while (!LOAD(cpu->stop))
		asm volatile("wfi" : : : "memory");
	asm volatile("msr daifset, #2" : : : "memory");
}

static void send_sgis(u32 to, u32 first, u32 sgis, u64 rounds)
{
	u64 base[16], *count = mailbox->count[to];
	u64 round;
	u32 n;

	for (n = 0; n < sgis; n++)
		base[n] = LOAD(count[first + n]);
	for (round = 1; round <= rounds; round++) {
		for (n = 0; n < sgis; n++)
			gic.send_sgi(first + n, to);
		for (n = 0; n < sgis; n++)
			while (LOAD(count[first + n]) < base[n] + round)
				asm volatile("yield");
	}
}

static void raise_edu(u32 intid, u64 registers, u64 rounds, u64 again)
{
	u32 slot = slot_of(intid);
	u64 *count = &mailbox->count[this_cpu()][slot];
	u64 round, before;

	edu = registers;
	mailbox->kind[slot] = KIND_EDU;
	asm volatile("msr daifclr, #2" : : : "memory");
	for (round = 0; round < rounds; round++) {
		before = LOAD(*count);
		edu_again = again;
		barrier();
		write32(registers + EDU_RAISE, 1);
		while (LOAD(*count) - before <= again)
			asm volatile("yield");
	}
	asm volatile("msr daifset, #2" : : : "memory");
}

static u64 execute(u64 command, struct cpu *cpu)
{
	u64 *a = cpu->argument;

	switch (command) {
	case COMMAND_GIC:
		gic.start_cpu();
		if (mailbox->its)
			its_start_cpu();
		return 0;
	case COMMAND_CPU_ON:
		return psci(PSCI_CPU_ON, a[0], (u64)secondary_start, a[0]);
	case COMMAND_WIRE:
		set_up_wire((u32)a[0], a[1], (u32)a[2]);
		return 0;
	case COMMAND_ENABLE:
		enable((u32)a[0], a[1]);
		return 0;
	case COMMAND_SERVE:
		serve(cpu);
		return 0;
	case COMMAND_SGIS:
		send_sgis((u32)a[0], (u32)a[1], (u32)a[2], a[3]);
		return 0;
	case COMMAND_ITS:
		its_start((u32)a[0]);
		return 0;
	case COMMAND_MAP_DEVICE:
		its_map_device((u32)a[0], (u32)a[1]);
		return 0;
	case COMMAND_MAP_EVENT:
		its_map_event((u32)a[0], (u32)a[1], (u32)a[2], (u32)a[3]);
		return 0;
	case COMMAND_DISCARD:
		its_discard((u32)a[0], (u32)a[1]);
		return 0;
	case COMMAND_MOVE:
		its_move((u32)a[0], (u32)a[1], (u32)a[2]);
		return 0;
	case COMMAND_ENABLE_LPI:
		its_enable_lpi((u32)a[0], (u32)a[1], (u32)a[2], a[3] != 0);
		return 0;
	case COMMAND_POWER_OFF:
		return psci(PSCI_SYSTEM_OFF, 0, 0, 0);
	case COMMAND_RAISE:
		raise_edu((u32)a[0], a[1], a[2], a[3]);
		return 0;
	case COMMAND_WRITE:
		write64(a[0], a[1]);
		return 0;
	case COMMAND_READ:
		return read32(a[0]);
	}
	fail(command);
}

/* Asking for a command is an exit to the test, which answers when it has one: so the last one's result is there by then. */
static void command_loop(void)
{
	struct cpu *cpu = &mailbox->cpu[this_cpu()];

	for (;;) {
		barrier();
		cpu->result = execute(read64(CONSOLE_COMMAND), cpu);
	}
}

void start(u64 x0)
{
	mailbox = (struct mailbox *)x0;
	/* Started as a kernel, without a test: x0 is a device tree. Whoever sees the guest off again knows that it ran. */
	if (!x0 || mailbox->magic != MAGIC)
		psci(PSCI_SYSTEM_OFF, 0, 0, 0);
	if (mailbox->gic == 2)
		gic2_start(&gic);
	else
		gic3_start(&gic);
	mailbox->size = sizeof(struct mailbox);
	command_loop();
}

void start_secondary(u32 cpu)
{
	(void)cpu;
	command_loop();
}
