/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the files of the bare-metal guest share: the mailbox through which a test talks to it, and what each file offers.
 * README.md explains the whole.
 */
#ifndef METAL_H
#define METAL_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

_Static_assert(sizeof(u64) == 8, "LP64");

#define CPUS 8u

/* Wires (SGI, PPI, SPI) have the first thousand places of each table, LPIs what follows. */
#define LPI_BASE 8192u
#define WIRE_SLOTS 1024u
#define LPI_SLOTS 1024u
#define SLOTS (WIRE_SLOTS + LPI_SLOTS)

/* How the handler deals with an interrupt. */
enum kind {
	/* Counts it. */
	KIND_EDGE = 0,
	/* Takes one item from each device on the line, so that the device lowers its end when it has none left. */
	KIND_LEVEL = 1,
	/* The same, then waits until somebody has really lowered the wire. */
	KIND_LOWERED = 2,
	/* Acknowledges QEMU's teaching device edu, which a host has passed through, and perhaps has it interrupt again: COMMAND_RAISE sets it. */
	KIND_EDU = 3,
};

/* A device on a level-triggered line. It has something to say while the two differ. */
struct device {
	/* Written by the device's side: how many items there have ever been. */
	u64 posted;
	/* Written by the guest: how many it has taken. */
	u64 handled;
};

/* One CPU's part. */
struct cpu {
	/* Of the command, and its answer. */
	u64 argument[6];
	u64 result;
	/* The test's word to a CPU that serves interrupts: come back. */
	u64 stop;
	/* Interrupts of a level-triggered line with no device behind that has something to say. */
	u64 causeless;
	/* Acknowledgements that found nothing (1023), which is how each visit of the handler ends, and other special numbers. */
	u64 visits;
	u64 special;
	u64 reserved[5];
};

/* Guest memory that the test sees too. Its address is in x0 when CPU 0 starts. The Rust side is tests/src/metal/mailbox.rs. */
struct mailbox {
	/* MAGIC, from the test: x0 may also be a device tree, which has another. */
	u64 magic;
	/* sizeof(struct mailbox), from the guest once it is up. */
	u64 size;
	/* 2 or 3. */
	u64 gic;
	/* Guest-physical addresses; the CPU interface is a GICv2's, the other two a GICv3's. */
	u64 distributor;
	u64 cpu_interface;
	u64 redistributors;
	u64 its;
	/* Zeroed memory for the ITS's tables, at a multiple of 64 KiB. */
	u64 heap;
	u64 heap_end;
	/* An exception that nobody expected: ESR_EL1, ELR_EL1, FAR_EL1. */
	u64 exception[3];
	u64 reserved[4];
	struct cpu cpu[CPUS];
	/* By interrupt: how to deal with it. */
	u64 kind[SLOTS];
	/* Written before a signal, and what the last handler that ran after saw of it. */
	u64 sent[SLOTS];
	u64 seen[SLOTS];
	/* Two devices a line. */
	struct device device[WIRE_SLOTS][2];
	/* For KIND_LOWERED: the value of `handled` for which the wire has been lowered. */
	u64 lowered[WIRE_SLOTS];
	/* Each CPU counts for itself, so that no count needs an atomic operation. */
	u64 count[CPUS][SLOTS];
};

#define MAGIC 0x4c454d2d4c4c4542ul

_Static_assert(sizeof(struct cpu) == 128, "the test's idea of it");
_Static_assert(sizeof(struct mailbox) == 128 + CPUS * 128 + 3 * SLOTS * 8 + WIRE_SLOTS * 40 + CPUS * SLOTS * 8,
	       "the test's idea of it");

/* The registers with which a CPU leaves the guest on purpose: reading gives the next command, writing reports a failure. */
#define CONSOLE 0x0a000000ul
#define CONSOLE_COMMAND (CONSOLE + 0)
#define CONSOLE_FAILURE (CONSOLE + 8)

/* What a test can ask of a CPU; arguments in order. Each returns 0, or what it says. */
enum command {
	/* Switches the GIC on: CPU 0 also the distributor. */
	COMMAND_GIC = 1,
	/* CPU, where it starts: PSCI's answer. */
	COMMAND_CPU_ON = 2,
	/* INTID, enum kind, CPU: configures a wire, and enables it. */
	COMMAND_WIRE = 3,
	/* INTID, whether it is to be enabled. */
	COMMAND_ENABLE = 4,
	/* Takes interrupts until told to stop. */
	COMMAND_SERVE = 5,
	/* To CPU, first SGI, how many of them, rounds: sends each once a round, and the next round when all have arrived. */
	COMMAND_SGIS = 6,
	/* CPUs: switches on the ITS and one collection for each CPU. */
	COMMAND_ITS = 7,
	/* Device ID, how many bits its event IDs have. */
	COMMAND_MAP_DEVICE = 8,
	/* Device ID, event ID, LPI, collection (a CPU): enabled. */
	COMMAND_MAP_EVENT = 9,
	/* Device ID, event ID. */
	COMMAND_DISCARD = 10,
	/* Device ID, event ID, collection. */
	COMMAND_MOVE = 11,
	/* Device ID, event ID, its LPI, whether it is to be enabled. */
	COMMAND_ENABLE_LPI = 12,
	/* SYSTEM_OFF. */
	COMMAND_POWER_OFF = 13,
	/* INTID, registers of an edu device, rounds, how often again: has the device interrupt this CPU, once in each round from here and as often
	 * again from the handler before it ends the interrupt; the next round when all have been counted. Takes interrupts meanwhile. */
	COMMAND_RAISE = 14,
	/* Address of a register, value. */
	COMMAND_WRITE = 15,
	/* Address of a register: its 32 bits. */
	COMMAND_READ = 16,
};

/* boot.S */
extern char secondary_start[];

/* main.c: what boot.S calls. */
void start(u64 x0);
void start_secondary(u32 cpu);
void take_interrupts(void);
void unexpected_exception(u64 esr, u64 elr, u64 far);
__attribute__((noreturn)) void fail(u64 why);

/* The CPU this runs on; boot.S keeps it. */
static inline u32 this_cpu(void)
{
	u64 cpu;

	asm volatile("mrs %0, tpidr_el1" : "=r"(cpu));
	return (u32)cpu;
}

/* Registers. One plain load or store each: what KVM can emulate from the fault's syndrome. */
static inline u32 read32(u64 address)
{
	u32 value;

	asm volatile("ldr %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void write32(u64 address, u32 value)
{
	asm volatile("str %w0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static inline u64 read64(u64 address)
{
	u64 value;

	asm volatile("ldr %0, [%1]" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void write64(u64 address, u64 value)
{
	asm volatile("str %0, [%1]" : : "r"(value), "r"(address) : "memory");
}

static inline void write8(u64 address, u8 value)
{
	asm volatile("strb %w0, [%1]" : : "r"(value), "r"(address) : "memory");
}

/* Memory that the test's threads and other CPUs use at the same time. */
#define LOAD(what) __atomic_load_n(&(what), __ATOMIC_ACQUIRE)
#define STORE(what, value) __atomic_store_n(&(what), (value), __ATOMIC_RELEASE)

/* All that was written before is seen by devices, and by those whom a register write after this tells of it. */
static inline void barrier(void)
{
	asm volatile("dsb sy" : : : "memory");
}

/* gic2.c, gic3.c: the two kinds of GIC behind one table. */
struct gic {
	/* Switches on the CPU's part. */
	void (*start_cpu)(void);
	/* Routes an SPI to a CPU. */
	void (*route)(u32 intid, u32 cpu);
	/* Where the registers for the CPU's private interrupts are, which are laid out like the distributor's first. */
	u64 (*private_frame)(void);
	/* What is there to be handled: as IAR has it, and the INTID in it. */
	u32 (*acknowledge)(u32 *intid);
	void (*end)(u32 acknowledged);
	void (*send_sgi)(u32 sgi, u32 cpu);
};

void gic2_start(struct gic *gic);
void gic3_start(struct gic *gic);
/* Where this CPU's redistributor is. */
u64 gic3_redistributor(void);
/* How the ITS is to call this CPU. */
u64 gic3_processor_number(u64 redistributor);

/* its.c */
void its_start(u32 cpus);
void its_start_cpu(void);
void its_map_device(u32 device, u32 event_bits);
void its_map_event(u32 device, u32 event, u32 lpi, u32 collection);
void its_discard(u32 device, u32 event);
void its_move(u32 device, u32 event, u32 collection);
void its_enable_lpi(u32 device, u32 event, u32 lpi, int enabled);

extern struct mailbox *mailbox;

#endif
