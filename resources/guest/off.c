/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The smallest first process: powers the guest off at once. With it, the time from starting a VMM to the guest's
 * power-off is the VMM's own and the kernel's, not a shell's. No libc, hence the system call by hand.
 */
void _start(void)
{
	register long x0 asm("x0") = 0xfee1dead; /* LINUX_REBOOT_MAGIC1 */
	register long x1 asm("x1") = 672274793;  /* LINUX_REBOOT_MAGIC2 */
	register long x2 asm("x2") = 0x4321fedc; /* LINUX_REBOOT_CMD_POWER_OFF */
	register long x8 asm("x8") = 142;        /* reboot */

	asm volatile("svc #0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x8) : "memory");
	for (;;)
		;
}
