/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The ITS and LPIs (Arm IHI 0069, chapters 5 and 6): one ITS, flat tables, one collection a CPU. */
#include "metal.h"

#define KIB64 0x10000ul

#define GITS_CTLR 0x0000
#define GITS_TYPER 0x0008
#define GITS_TYPER_PTA (1ul << 19)
#define GITS_CBASER 0x0080
#define GITS_CWRITER 0x0088
#define GITS_CREADR 0x0090
#define GITS_BASER 0x0100
#define GITS_BASERS 8u

#define GICR_CTLR 0x0000
#define GICR_CTLR_ENABLE_LPIS 1u
#define GICR_PROPBASER 0x0070
#define GICR_PENDBASER 0x0078

#define VALID (1ul << 63)
/* Inner shareable, inner write-back, outer as inner: in CBASER, PROPBASER and PENDBASER, and shifted in BASER. */
#define SHAREABLE (1ul << 10)
#define CBASER_CACHEABLE (7ul << 59)
#define REDIST_CACHEABLE (7ul << 7)

/* INTIDs have 16 bits, the most that KVM's ITS translates to. One byte of properties for each LPI, one bit of pending for each INTID. */
#define ID_BITS 16ul
#define LPI_PRIORITY 0xa0u
#define LPI_GROUP1 2u
#define LPI_ENABLED 1u

enum its_command {
	ITS_MOVI = 0x01,
	ITS_SYNC = 0x05,
	ITS_MAPD = 0x08,
	ITS_MAPC = 0x09,
	ITS_MAPTI = 0x0a,
	ITS_INV = 0x0c,
	ITS_DISCARD = 0x0f,
};

static u64 heap;
static u8 *properties;
static u64 queue, queue_at;
/* What MAPC and SYNC call the redistributor of a collection. */
static u64 target[CPUS];

/* Memory at a multiple of 64 KiB. */
static u64 allocate(u64 size)
{
	u64 block;

	if (!heap)
		heap = mailbox->heap;
	block = heap;
	heap += (size + KIB64 - 1) & ~(KIB64 - 1);
	if (heap > mailbox->heap_end)
		fail(heap);
	return block;
}

/* Hands four words to the ITS and waits until it has done what they say. */
static void its_command(u64 w0, u64 w1, u64 w2)
{
	u64 *slot = (u64 *)(queue + queue_at);

	slot[0] = w0;
	slot[1] = w1;
	slot[2] = w2;
	slot[3] = 0;
	queue_at = (queue_at + 32) % KIB64;
	barrier();
	write64(mailbox->its + GITS_CWRITER, queue_at);
	while (read64(mailbox->its + GITS_CREADR) != queue_at)
		;
}

static void its_sync(u32 collection)
{
	its_command(ITS_SYNC, 0, target[collection]);
}

/* Puts a table behind each BASER that wants one. 64 KiB have room for 8192 devices or collections of eight bytes. */
static void its_tables(void)
{
	u64 reg, type, address;
	u32 n;

	for (n = 0; n < GITS_BASERS; n++) {
		reg = mailbox->its + GITS_BASER + 8 * n;
		type = read64(reg) >> 56 & 7;
		if (type == 0)
			continue;
		address = allocate(KIB64);
		/* Page size 64 KiB (bits 9-8), one page (bits 7-0 hold one less). */
		write64(reg, VALID | 7ul << 59 | address | SHAREABLE | 2ul << 8);
	}
}

/* Each CPU switches on its LPIs. They share the properties; what is pending is each one's own. */
void its_start_cpu(void)
{
	u64 frame = gic3_redistributor();

	if (!properties)
		properties = (u8 *)allocate(1ul << ID_BITS);
	write64(frame + GICR_PROPBASER, (u64)properties | REDIST_CACHEABLE | SHAREABLE | (ID_BITS - 1));
	/* Bit 62: the table is zeroed. */
	write64(frame + GICR_PENDBASER, allocate((1ul << ID_BITS) / 8) | 1ul << 62 | REDIST_CACHEABLE | SHAREABLE);
	barrier();
	write32(frame + GICR_CTLR, read32(frame + GICR_CTLR) | GICR_CTLR_ENABLE_LPIS);
	if (read64(mailbox->its + GITS_TYPER) & GITS_TYPER_PTA)
		target[this_cpu()] = frame;
	else
		target[this_cpu()] = gic3_processor_number(frame) << 16;
	barrier();
}

void its_start(u32 cpus)
{
	u32 cpu;

	its_tables();
	queue = allocate(KIB64);
	/* Sixteen pages of 4 KiB (bits 7-0 hold one less). */
	write64(mailbox->its + GITS_CBASER, VALID | CBASER_CACHEABLE | queue | SHAREABLE | 15);
	write64(mailbox->its + GITS_CWRITER, 0);
	write32(mailbox->its + GITS_CTLR, 1);
	for (cpu = 0; cpu < cpus; cpu++) {
		its_command(ITS_MAPC, 0, VALID | target[cpu] | cpu);
		its_sync(cpu);
	}
}

void its_map_device(u32 device, u32 event_bits)
{
	/* An entry has eight bytes with KVM (GITS_TYPER bits 7-4 hold one less). */
	u64 entry = (read64(mailbox->its + GITS_TYPER) >> 4 & 0xf) + 1;
	u64 table = allocate(entry << event_bits);

	its_command((u64)device << 32 | ITS_MAPD, event_bits - 1, VALID | table);
}

void its_map_event(u32 device, u32 event, u32 lpi, u32 collection)
{
	properties[lpi - LPI_BASE] = LPI_PRIORITY | LPI_GROUP1 | LPI_ENABLED;
	barrier();
	its_command((u64)device << 32 | ITS_MAPTI, (u64)lpi << 32 | event, collection);
	its_command((u64)device << 32 | ITS_INV, event, 0);
	its_sync(collection);
}

void its_discard(u32 device, u32 event)
{
	its_command((u64)device << 32 | ITS_DISCARD, event, 0);
}

void its_move(u32 device, u32 event, u32 collection)
{
	its_command((u64)device << 32 | ITS_MOVI, event, collection);
	its_sync(collection);
}

void its_enable_lpi(u32 device, u32 event, u32 lpi, int enabled)
{
	properties[lpi - LPI_BASE] = LPI_PRIORITY | LPI_GROUP1 | (enabled ? LPI_ENABLED : 0);
	barrier();
	its_command((u64)device << 32 | ITS_INV, event, 0);
}
