/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* GICv2 (Arm IHI 0048): a distributor and, memory-mapped, a CPU interface. */
#include "metal.h"

#define GICD_CTLR 0x000
#define GICD_ITARGETSR 0x800
#define GICD_SGIR 0xf00

#define GICC_CTLR 0x00
#define GICC_PMR 0x04
#define GICC_IAR 0x0c
#define GICC_EOIR 0x10

static void start_cpu(void)
{
	if (this_cpu() == 0)
		write32(mailbox->distributor + GICD_CTLR, 1);
	write32(mailbox->cpu_interface + GICC_PMR, 0xff);
	write32(mailbox->cpu_interface + GICC_CTLR, 1);
}

static void route(u32 intid, u32 cpu)
{
	write8(mailbox->distributor + GICD_ITARGETSR + intid, (u8)(1u << cpu));
}

/* The distributor shows each CPU its own. */
static u64 private_frame(void)
{
	return mailbox->distributor;
}

static u32 acknowledge(u32 *intid)
{
	/* An SGI's has the sender's number above the INTID, and must be ended with it. */
	u32 iar = read32(mailbox->cpu_interface + GICC_IAR);

	barrier();
	*intid = iar & 0x3ff;
	return iar;
}

static void end(u32 acknowledged)
{
	write32(mailbox->cpu_interface + GICC_EOIR, acknowledged);
}

static void send_sgi(u32 sgi, u32 cpu)
{
	write32(mailbox->distributor + GICD_SGIR, (1u << (16 + cpu)) | sgi);
}

void gic2_start(struct gic *gic)
{
	gic->start_cpu = start_cpu;
	gic->route = route;
	gic->private_frame = private_frame;
	gic->acknowledge = acknowledge;
	gic->end = end;
	gic->send_sgi = send_sgi;
}
