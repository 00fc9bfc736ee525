/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A first process that writes one line and sleeps for ever: the idle guest whose VMM's memory is measured. */
static long call(long nr, long a, long b, long c, long d)
{
	register long x0 asm("x0") = a;
	register long x1 asm("x1") = b;
	register long x2 asm("x2") = c;
	register long x3 asm("x3") = d;
	register long x8 asm("x8") = nr;

	asm volatile("svc #0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x3), "r"(x8) : "memory");
	return x0;
}

void _start(void)
{
	static const char text[] = "doorbell-guest: ready\n";

	call(64, 1, (long)text, sizeof(text) - 1, 0); /* write */
	for (;;)
		call(73, 0, 0, 0, 0); /* ppoll on nothing */
}
