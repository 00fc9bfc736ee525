/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What a guest does to its devices while they are measured (`tests/bench/run virtio`): the same on each VMM. Prints how long it took, in nanoseconds.
 *
 *   load disk FILE read|write seq|random BLOCK DEPTH REQUESTS   past the page cache; DEPTH requests at a time, by Linux AIO
 *   load serve PORT                     the other end of the following, for ever
 *   load send ADDRESS PORT BYTES        a stream of TCP, until the other end has said that it has all of it
 *   load receive ADDRESS PORT BYTES     the other way
 *   load ping ADDRESS PORT ROUNDS       a byte there and back
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEEPEST 256
/* Bytes that are sent and received with one call. */
#define PORTION (256 << 10)

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* --- disk --- */

static uint64_t blocks, position, state = 88172645463325252ull;
static int random_order;

static uint64_t next_block(void)
{
	if (!random_order)
		return position++ % blocks;
	/* xorshift: the same places in each run. */
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % blocks;
}

static void disk(char **arg)
{
	static struct iocb requests[DEEPEST];
	static struct io_event done[DEEPEST];
	struct iocb *batch[DEEPEST];
	int writes = !strcmp(arg[1], "write");
	size_t block = atol(arg[3]);
	long depth = atol(arg[4]), left = atol(arg[5]), flying = 0, ready;
	aio_context_t context = 0;
	uint64_t start;
	int file = open(arg[0], (writes ? O_RDWR : O_RDONLY) | O_DIRECT);

	if (file < 0)
		die(arg[0]);
	if (depth < 1 || depth > DEEPEST || left < depth || block == 0)
		exit(2);
	random_order = !strcmp(arg[2], "random");
	blocks = lseek(file, 0, SEEK_END) / block;
	for (long i = 0; i < depth; i++) {
		void *buffer;

		if (posix_memalign(&buffer, 4096, block))
			die("memory");
		memset(buffer, (int)i, block);
		requests[i] = (struct iocb){ .aio_fildes = file, .aio_buf = (uintptr_t)buffer, .aio_nbytes = block, .aio_data = i,
					     .aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD };
		batch[i] = &requests[i];
	}
	if (syscall(SYS_io_setup, depth, &context))
		die("io_setup");
	start = now();
	ready = depth;
	while (left > 0 || flying > 0) {
		if (ready > left)
			ready = left;
		for (long i = 0; i < ready; i++)
			batch[i]->aio_offset = next_block() * block;
		if (ready > 0 && syscall(SYS_io_submit, context, ready, batch) != ready)
			die("io_submit");
		left -= ready;
		flying += ready;
		ready = syscall(SYS_io_getevents, context, 1, depth, done, NULL);
		if (ready < 1)
			die("io_getevents");
		flying -= ready;
		for (long i = 0; i < ready; i++) {
			if (done[i].res != (int64_t)block) {
				fprintf(stderr, "%s: a request of %zu bytes came to %lld\n", arg[0], block, (long long)done[i].res);
				exit(1);
			}
			batch[i] = &requests[done[i].data];
		}
	}
	printf("%llu\n", (unsigned long long)(now() - start));
}

/* --- network --- */

static char bytes[PORTION];

static void give(int to, uint64_t left)
{
	while (left > 0) {
		ssize_t sent = write(to, bytes, left < PORTION ? left : PORTION);

		if (sent <= 0)
			die("write");
		left -= sent;
	}
}

static void take(int from, uint64_t left)
{
	while (left > 0) {
		ssize_t got = read(from, bytes, left < PORTION ? left : PORTION);

		if (got <= 0)
			die("read");
		left -= got;
	}
}

static void at_once(int connection)
{
	int on = 1;

	setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* A connection begins with what is wanted and how much of it. */
struct __attribute__((packed)) wish {
	char what;
	uint64_t amount;
};

static void answer(int connection)
{
	struct wish wish;

	at_once(connection);
	take(connection, sizeof(wish));
	memcpy(&wish, bytes, sizeof(wish));
	switch (wish.what) {
	case 's':
		take(connection, wish.amount);
		give(connection, 1);
		break;
	case 'r':
		give(connection, wish.amount);
		break;
	case 'p':
		for (uint64_t i = 0; i < wish.amount; i++) {
			take(connection, 1);
			give(connection, 1);
		}
	}
}

static void serve(char **arg)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(arg[0])) };
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	signal(SIGCHLD, SIG_IGN);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 8))
		die("listen");
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection < 0)
			die("accept");
		if (fork() == 0) {
			answer(connection);
			exit(0);
		}
		close(connection);
	}
}

static void talk(char what, char **arg)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(arg[1])) };
	struct wish wish = { what, strtoull(arg[2], NULL, 10) };
	int connection = socket(AF_INET, SOCK_STREAM, 0);
	uint64_t start;

	if (!inet_aton(arg[0], &address.sin_addr) || connect(connection, (struct sockaddr *)&address, sizeof(address)))
		die(arg[0]);
	at_once(connection);
	start = now();
	memcpy(bytes, &wish, sizeof(wish));
	give(connection, sizeof(wish));
	switch (what) {
	case 's':
		give(connection, wish.amount);
		take(connection, 1);
		break;
	case 'r':
		take(connection, wish.amount);
		break;
	case 'p':
		for (uint64_t i = 0; i < wish.amount; i++) {
			give(connection, 1);
			take(connection, 1);
		}
	}
	printf("%llu\n", (unsigned long long)(now() - start));
}

int main(int count, char **arg)
{
	if (count == 8 && !strcmp(arg[1], "disk"))
		disk(arg + 2);
	else if (count == 3 && !strcmp(arg[1], "serve"))
		serve(arg + 2);
	else if (count == 5 && (!strcmp(arg[1], "send") || !strcmp(arg[1], "receive") || !strcmp(arg[1], "ping")))
		talk(arg[1][0], arg + 2);
	else
		return 2;
	return 0;
}
