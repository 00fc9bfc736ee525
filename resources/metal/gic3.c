/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* GICv3 (Arm IHI 0069): a distributor, a redistributor for each CPU, and the CPU interface as system registers. */
#include "metal.h"

#define GICD_CTLR 0x0000
#define GICD_CTLR_ENABLE_GROUP1 (1u << 1)
#define GICD_CTLR_ARE (1u << 4)
#define GICD_CTLR_RWP (1u << 31)
#define GICD_TYPER 0x0004
#define GICD_IGROUPR 0x0080
#define GICD_IROUTER 0x6000

/* A redistributor is two frames of 64 KiB; the second has the private interrupts. */
#define GICR_STRIDE 0x20000ul
#define GICR_SGI_FRAME 0x10000ul
#define GICR_TYPER 0x0008
#define GICR_TYPER_LAST (1ul << 4)
#define GICR_WAKER 0x0014
#define GICR_WAKER_PROCESSOR_SLEEP (1u << 1)
#define GICR_WAKER_CHILDREN_ASLEEP (1u << 2)

#define ICC_PMR_EL1 "s3_0_c4_c6_0"
#define ICC_IAR1_EL1 "s3_0_c12_c12_0"
#define ICC_EOIR1_EL1 "s3_0_c12_c12_1"
#define ICC_BPR1_EL1 "s3_0_c12_c12_3"
#define ICC_CTLR_EL1 "s3_0_c12_c12_4"
#define ICC_SRE_EL1 "s3_0_c12_c12_5"
#define ICC_IGRPEN1_EL1 "s3_0_c12_c12_7"
#define ICC_SGI1R_EL1 "s3_0_c12_c11_5"

#define READ(reg) ({ u64 v; asm volatile("mrs %0, " reg : "=r"(v) : : "memory"); v; })
#define WRITE(reg, value) asm volatile("msr " reg ", %0" : : "r"((u64)(value)) : "memory")
#define ISB() asm volatile("isb" : : : "memory")

static u64 redistributor[CPUS];

u64 gic3_redistributor(void)
{
	return redistributor[this_cpu()];
}

u64 gic3_processor_number(u64 frame)
{
	return (read64(frame + GICR_TYPER) >> 8) & 0xffff;
}

/* GICR_TYPER has the affinity of its CPU in bits 63-32, where MPIDR_EL1 has Aff3 in 39-32 and Aff2 to Aff0 in 23-0. */
static u64 find_redistributor(void)
{
	u64 mpidr = READ("mpidr_el1");
	u64 affinity = (mpidr & 0xffffff) | ((mpidr >> 8) & 0xff000000);
	u64 frame, typer;

	for (frame = mailbox->redistributors;; frame += GICR_STRIDE) {
		typer = read64(frame + GICR_TYPER);
		if (typer >> 32 == affinity)
			return frame;
		if (typer & GICR_TYPER_LAST)
			fail(affinity);
	}
}

static void start_distributor(void)
{
	u64 base = mailbox->distributor;
	u32 intid, lines = 32 * ((read32(base + GICD_TYPER) & 0x1f) + 1);

	write32(base + GICD_CTLR, 0);
	while (read32(base + GICD_CTLR) & GICD_CTLR_RWP)
		;
	for (intid = 32; intid < lines; intid += 32)
		write32(base + GICD_IGROUPR + intid / 8, ~0u);
	write32(base + GICD_CTLR, GICD_CTLR_ARE | GICD_CTLR_ENABLE_GROUP1);
	while (read32(base + GICD_CTLR) & GICD_CTLR_RWP)
		;
}

static void start_cpu(void)
{
	u64 frame = find_redistributor();

	redistributor[this_cpu()] = frame;
	if (this_cpu() == 0)
		start_distributor();
	write32(frame + GICR_WAKER, read32(frame + GICR_WAKER) & ~GICR_WAKER_PROCESSOR_SLEEP);
	while (read32(frame + GICR_WAKER) & GICR_WAKER_CHILDREN_ASLEEP)
		;
	write32(frame + GICR_SGI_FRAME + GICD_IGROUPR, ~0u);

	WRITE(ICC_SRE_EL1, READ(ICC_SRE_EL1) | 1);
	ISB();
	WRITE(ICC_PMR_EL1, 0xff);
	WRITE(ICC_BPR1_EL1, 0);
	/* EOImode 0: ending an interrupt also deactivates it. */
	WRITE(ICC_CTLR_EL1, 0);
	WRITE(ICC_IGRPEN1_EL1, 1);
	ISB();
}

static void route(u32 intid, u32 cpu)
{
	/* All our CPUs are in one cluster: Aff0 is the CPU's number. */
	write64(mailbox->distributor + GICD_IROUTER + 8 * intid, cpu);
}

static u64 private_frame(void)
{
	return gic3_redistributor() + GICR_SGI_FRAME;
}

static u32 acknowledge(u32 *intid)
{
	u32 iar = (u32)READ(ICC_IAR1_EL1);

	barrier();
	*intid = iar & 0xffffff;
	return iar;
}

static void end(u32 acknowledged)
{
	WRITE(ICC_EOIR1_EL1, acknowledged);
	ISB();
}

static void send_sgi(u32 sgi, u32 cpu)
{
	barrier();
	WRITE(ICC_SGI1R_EL1, ((u64)sgi << 24) | (1ul << cpu));
	ISB();
}

void gic3_start(struct gic *gic)
{
	gic->start_cpu = start_cpu;
	gic->route = route;
	gic->private_frame = private_frame;
	gic->acknowledge = acknowledge;
	gic->end = end;
	gic->send_sgi = send_sgi;
}
