/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * gpio-wait CHIP LINE: says "armed" when line LINE (0 to 9) of the GPIO controller CHIP is an interrupt, and "event" each time the line rises, for
 * ever. The shell can do neither. No libc, hence the system calls by hand.
 */
#include <linux/gpio.h>

static long call(long number, long a, long b, long c)
{
	register long x0 asm("x0") = a;
	register long x1 asm("x1") = b;
	register long x2 asm("x2") = c;
	register long x3 asm("x3") = 0;
	register long x8 asm("x8") = number;

	asm volatile("svc #0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x3), "r"(x8) : "memory");
	return x0;
}

enum { READ = 63, WRITE = 64, OPENAT = 56, IOCTL = 29, EXIT = 93 };

static void say(const char *text, long length)
{
	call(WRITE, 1, (long)text, length);
}

static struct gpio_v2_line_request request;

__attribute__((used)) static void wait(long *stack)
{
	const char *chip = (const char *)stack[2], *line = (const char *)stack[3];
	struct gpio_v2_line_event event;
	long fd;

	if (stack[0] != 3)
		call(EXIT, 2, 0, 0);
	fd = call(OPENAT, -100, (long)chip, 2 /* O_RDWR */);
	request.offsets[0] = line[0] - '0';
	request.num_lines = 1;
	request.config.flags = GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_EDGE_RISING;
	if (fd < 0 || call(IOCTL, fd, GPIO_V2_GET_LINE_IOCTL, (long)&request) < 0)
		call(EXIT, 1, 0, 0);
	say("armed\n", 6);
	while (call(READ, request.fd, (long)&event, sizeof(event)) == sizeof(event))
		say("event\n", 6);
	call(EXIT, 1, 0, 0);
	for (;;)
		;
}

/* At the start the stack pointer points at the number of arguments, and the arguments follow. */
asm(".globl _start\n_start:\tmov x0, sp\n\tb wait\n");
