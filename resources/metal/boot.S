/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The first instructions of each CPU, the translation table, and the exception vectors.
 *
 * The image runs wherever it lies within the second GiB of guest-physical memory: code and data refer to each other relative to PC only.
 */

	/* Bytes of stack for each CPU, as a power of two. */
	.equ	STACK_SHIFT, 12
	/* Attribute 0: device, nGnRE. Attribute 1: normal, write-back. */
	.equ	MAIR, 0xff04
	/* 39 bits of address through TTBR0, 4K granule, write-back inner shareable walks; none through TTBR1; 36 bits of output. */
	.equ	TCR, (25 << 0) | (1 << 8) | (1 << 10) | (3 << 12) | (1 << 23) | (1 << 32)
	/* M, C, I. */
	.equ	SCTLR_ON, (1 << 0) | (1 << 2) | (1 << 12)

	.section .text.head, "ax"

/* Linux's Documentation/arch/arm64/booting.rst, section 4: what a loader of arm64 kernels looks for. */
	.global	head
head:
	b	primary_start
	.long	0
	.quad	0			/* text_offset */
	.quad	image_size
	.quad	0xa			/* flags: little-endian, 4K pages, anywhere in memory */
	.quad	0
	.quad	0
	.quad	0
	.ascii	"ARM\x64"
	.long	0

/* x0 is the mailbox or a device tree. Interrupts are masked, the MMU is off. */
primary_start:
	mov	x19, x0
	mov	x20, #0
	bl	start_mmu
	/* The linker aligns both ends to 16 bytes. */
	adrp	x0, bss_start
	add	x0, x0, :lo12:bss_start
	adrp	x1, bss_end
	add	x1, x1, :lo12:bss_end
1:	cmp	x0, x1
	b.hs	2f
	stp	xzr, xzr, [x0], #16
	b	1b
2:	bl	start_cpu
	mov	x0, x19
	bl	start
	b	.

/* x0 is the CPU's number, which is what PSCI CPU_ON was given as context. */
	.global	secondary_start
secondary_start:
	mov	x20, x0
	bl	start_mmu
	bl	start_cpu
	mov	w0, w20
	bl	start_secondary
	b	.

/* x20 is the CPU's number. Sets up its stack, its vectors, and where it finds its number again. */
start_cpu:
	msr	tpidr_el1, x20
	msr	spsel, #1
	adrp	x0, stacks
	add	x0, x0, :lo12:stacks
	add	x1, x20, #1
	add	x0, x0, x1, lsl #STACK_SHIFT
	mov	sp, x0
	adrp	x0, vectors
	add	x0, x0, :lo12:vectors
	msr	vbar_el1, x0
	isb
	ret

/*
 * Memory is only coherent with the host's and the other CPUs' view of it when it is mapped as normal, cacheable memory; and without a
 * translation all of it would be device memory. The table is in the image, so no CPU ever writes it.
 */
start_mmu:
	mov	x0, #MAIR
	msr	mair_el1, x0
	ldr	x0, =TCR
	msr	tcr_el1, x0
	adrp	x0, translations
	msr	ttbr0_el1, x0
	isb
	tlbi	vmalle1
	dsb	nsh
	isb
	mrs	x0, sctlr_el1
	ldr	x1, =SCTLR_ON
	orr	x0, x0, x1
	msr	sctlr_el1, x0
	isb
	ret

	.ltorg

/* Level 1, one block of 1 GiB an entry: registers in the first, memory in the second, nothing anywhere else. */
	.section .rodata
	.balign	4096
translations:
	/* Block, attribute 0, accessed; execute never. */
	.quad	0x00000000 | (1 << 0) | (0 << 2) | (1 << 10) | (3 << 53)
	/* Block, attribute 1, inner shareable, accessed. */
	.quad	0x40000000 | (1 << 0) | (1 << 2) | (3 << 8) | (1 << 10)
	.fill	510, 8, 0

	.section .bss
	.balign	16
stacks:
	.skip	8 << STACK_SHIFT

/* What C may change, and what returning takes. */
	.macro	save
	sub	sp, sp, #192
	stp	x0, x1, [sp, #0]
	stp	x2, x3, [sp, #16]
	stp	x4, x5, [sp, #32]
	stp	x6, x7, [sp, #48]
	stp	x8, x9, [sp, #64]
	stp	x10, x11, [sp, #80]
	stp	x12, x13, [sp, #96]
	stp	x14, x15, [sp, #112]
	stp	x16, x17, [sp, #128]
	stp	x18, x29, [sp, #144]
	mrs	x0, elr_el1
	mrs	x1, spsr_el1
	stp	x30, x0, [sp, #160]
	str	x1, [sp, #176]
	.endm

	.macro	restore
	ldr	x1, [sp, #176]
	ldp	x30, x0, [sp, #160]
	msr	spsr_el1, x1
	msr	elr_el1, x0
	ldp	x18, x29, [sp, #144]
	ldp	x16, x17, [sp, #128]
	ldp	x14, x15, [sp, #112]
	ldp	x12, x13, [sp, #96]
	ldp	x10, x11, [sp, #80]
	ldp	x8, x9, [sp, #64]
	ldp	x6, x7, [sp, #48]
	ldp	x4, x5, [sp, #32]
	ldp	x2, x3, [sp, #16]
	ldp	x0, x1, [sp, #0]
	add	sp, sp, #192
	.endm

	.text
interrupt:
	save
	bl	take_interrupts
	restore
	eret

unexpected:
	mrs	x0, esr_el1
	mrs	x1, elr_el1
	mrs	x2, far_el1
	bl	unexpected_exception
	b	.

/* Arm ARM (DDI 0487), "Exception vectors": sixteen entries of 128 bytes; the guest uses EL1 with SP_EL1 and nothing else. */
	.balign	2048
vectors:
	.rept	5
	b	unexpected
	.balign	128
	.endr
	b	interrupt
	.balign	128
	.rept	10
	b	unexpected
	.balign	128
	.endr

	.section .note.GNU-stack, "", %progbits
