/* SPDX-License-Identifier: Apache-2.0 */
/* Both ends of what is measured.
 *
 *   load serve CPU FIRST_PORT PORTS   answers 64 bytes with the same 64 bytes at each of these TCP ports
 *   load drain CPU PORT               takes datagrams at this UDP port, and says how many so far at each line of its input
 *   load ask FILE                     asks the destinations of FILE ("ADDRESS PORT" lines) as the lines of its standard
 *                                     input say: CPU MODE AT_ONCE MILLISECONDS SEED
 *
 * MODE is "new" (each request is a connection of its own, to a destination drawn anew), "keep" (AT_ONCE connections, one
 * request after the other on each), or "flood" (datagrams of 64 bytes from AT_ONCE sockets, each with a destination of its
 * own, which they keep, as fast as one CPU can). "over" is said after each, and what came of all requests so far, as JSON, for "tell".
 *
 * In "new" the server closes first, as HTTP/1.0 did: what waits for late packets (TIME_WAIT) is there, limited by the
 * tcp_max_tw_buckets of its namespace, and no source port is ever used up. A request has taken from before connect()
 * until the end of the stream was read. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, BATCH = 32, EVENTS = 256, MOST_AT_ONCE = 1024, MOST_SAMPLES = 1 << 21 };
static const double PATIENCE = 5; /* seconds for what is still under way when a cell ends */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static double cpu(void)
{
	struct rusage used;

	getrusage(RUSAGE_SELF, &used);
	return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static void pin(int to)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(to, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void watch(int poll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { .events = events, .data.u64 = data };

	if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

/* -- the server ------------------------------------------------------------------------------------------------- */

static int listener(int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd < 0 || bind(fd, (void *)&at, sizeof(at)) || listen(fd, 4096))
		die("listen");
	return fd;
}

/* One request; it says itself whether another one follows. */
static void answer(int fd)
{
	char request[SIZE];
	ssize_t got = read(fd, request, SIZE);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got == SIZE && write(fd, request, SIZE) == SIZE && request[0] == 'k')
		return;
	close(fd);
}

static void serve(int first, int ports)
{
	struct rlimit most = { ports + 8192, ports + 8192 };
	struct epoll_event events[EVENTS];
	int poll = epoll_create1(0);

	if (setrlimit(RLIMIT_NOFILE, &most))
		die("setrlimit");
	for (int port = first; port < first + ports; port++) {
		int fd = listener(port);

		watch(poll, fd, EPOLLIN, 1ull << 32 | fd);
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		int many = epoll_wait(poll, events, EVENTS, -1);

		for (int i = 0; i < many; i++) {
			int fd = (int)events[i].data.u64, made;

			if (!(events[i].data.u64 >> 32))
				answer(fd);
			else
				while ((made = accept4(fd, NULL, NULL, SOCK_NONBLOCK)) >= 0)
					watch(poll, made, EPOLLIN, made);
		}
	}
}

static void drain(int port)
{
	static char room[BATCH][SIZE];
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0), large = 8 << 20;
	struct epoll_event events[EVENTS];
	struct mmsghdr batch[BATCH];
	struct iovec parts[BATCH];
	long many = 0;
	char line[64];

	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){ room[i], SIZE };
		batch[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &parts[i], .msg_iovlen = 1 } };
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof(large));
	if (fd < 0 || bind(fd, (void *)&at, sizeof(at)))
		die("bind");
	watch(poll, fd, EPOLLIN, fd);
	watch(poll, 0, EPOLLIN, 0);
	puts("ready");
	for (;;) {
		int ready;

		fflush(stdout);
		ready = epoll_wait(poll, events, EVENTS, -1);
		for (int i = 0; i < ready; i++) {
			int got;

			while (events[i].data.u64 && (got = recvmmsg(fd, batch, BATCH, 0, NULL)) > 0)
				many += got;
			if (!events[i].data.u64 && read(0, line, sizeof(line)) <= 0)
				return;
			if (!events[i].data.u64)
				printf("%ld\n", many);
		}
	}
}

/* -- the client ------------------------------------------------------------------------------------------------- */

struct request {
	int fd;
	bool asked;
	int got;
	double begun;
};

static struct sockaddr_in *destinations;
static int many_destinations;
static struct request requests[MOST_AT_ONCE];
static float samples[MOST_SAMPLES];
static long done, failed;
static double used, seconds;
static int under_way;
static bool is_over; /* nothing new is begun */
static uint64_t seed;

static void read_destinations(const char *path)
{
	FILE *file = fopen(path, "r");
	char address[64];
	int port, room = 0;

	if (!file)
		die(path);
	while (fscanf(file, "%63s %d", address, &port) == 2) {
		if (many_destinations == room)
			destinations = realloc(destinations, (room = 2 * room + 64) * sizeof(*destinations));
		destinations[many_destinations] = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port) };
		if (inet_pton(AF_INET, address, &destinations[many_destinations++].sin_addr) != 1)
			die(address);
	}
	fclose(file);
}

static uint32_t draw(uint32_t limit)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (seed >> 32) * limit >> 32;
}

static void begin(int poll, int number)
{
	struct request *each = &requests[number];
	struct sockaddr_in *to = &destinations[draw(many_destinations)];

	under_way++;
	*each = (struct request){ .begun = now(), .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0) };
	if (each->fd < 0)
		die("socket");
	connect(each->fd, (void *)to, sizeof(*to)); /* the poll says whether it failed */
	watch(poll, each->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, number);
}

static void end(int poll, int number)
{
	close(requests[number].fd);
	under_way--;
	if (!is_over)
		begin(poll, number);
}

static bool ask(struct request *each, bool keep)
{
	char message[SIZE] = { keep ? 'k' : 'n' };

	each->asked = true;
	each->got = 0;
	return write(each->fd, message, SIZE) == SIZE;
}

static void count(struct request *each)
{
	double at = now();

	if (done < MOST_SAMPLES)
		samples[done] = (at - each->begun) * 1e6;
	done++;
	each->begun = at;
}

/* What there is to be read: 1 where the request is answered, 0 where not yet, -1 where it failed. */
static int hear(struct request *each, bool keep)
{
	char answer[SIZE + 1];

	for (;;) {
		ssize_t got = read(each->fd, answer, sizeof(answer));

		if (got < 0)
			return errno == EAGAIN ? (keep && each->got == SIZE) : -1;
		if (got == 0)
			return !keep && each->got == SIZE ? 1 : -1;
		each->got += got;
	}
}

static void go_on(int poll, int number, uint32_t events, bool keep)
{
	struct request *each = &requests[number];
	int heard;

	if (!each->asked) {
		if ((events & (EPOLLERR | EPOLLHUP)) || ((events & EPOLLOUT) && !ask(each, keep))) {
			failed++;
			end(poll, number);
		}
		return;
	}
	heard = hear(each, keep);
	if (heard == 0)
		return;
	if (heard > 0) {
		count(each);
		if (keep && !is_over && ask(each, keep))
			return;
	} else {
		failed++;
	}
	end(poll, number);
}

static int compare(const void *one, const void *other)
{
	float a = *(const float *)one, b = *(const float *)other;

	return (a > b) - (a < b);
}

static void poll_until(int poll, bool keep, double until)
{
	struct epoll_event events[EVENTS];

	while (now() < until && under_way) {
		int many = epoll_wait(poll, events, EVENTS, 50);

		for (int i = 0; i < many; i++)
			go_on(poll, events[i].data.u64, events[i].events, keep);
	}
}

static void cell(bool keep, int at_once, double length)
{
	int poll = epoll_create1(0);
	double before, begun;

	is_over = false;
	under_way = 0;
	for (int number = 0; number < at_once; number++)
		begin(poll, number);
	if (keep) { /* until all are connected: that is not what is measured */
		long known = done, also = failed;

		while (done < known + at_once && failed == also)
			poll_until(poll, keep, now() + 0.001);
		done = known;
	}
	before = cpu();
	begun = now();
	poll_until(poll, keep, begun + length);
	used += cpu() - before;
	seconds += now() - begun;
	is_over = true;
	poll_until(poll, keep, now() + PATIENCE);
	if (under_way) {
		fprintf(stderr, "load: %d requests had no answer in %g s\n", under_way, PATIENCE);
		exit(1);
	}
	close(poll);
	puts("over");
}

static void flood(int sockets, double length)
{
	static char payload[SIZE];
	static int fds[MOST_AT_ONCE];
	struct iovec part = { payload, SIZE };
	struct mmsghdr batch[BATCH];
	double end;

	for (int i = 0; i < BATCH; i++)
		batch[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &part, .msg_iovlen = 1 } };
	for (int i = 0; i < sockets && !fds[i]; i++) {
		struct sockaddr_in *to = &destinations[draw(many_destinations)];

		fds[i] = socket(AF_INET, SOCK_DGRAM, 0);
		if (fds[i] < 0 || connect(fds[i], (void *)to, sizeof(*to)))
			die("connect");
	}
	end = now() + length;
	for (int i = 0; now() < end; i = (i + 1) % sockets)
		sendmmsg(fds[i], batch, BATCH, 0);
	puts("over");
}

static void tell(void)
{
	long kept = done < MOST_SAMPLES ? done : MOST_SAMPLES;

	qsort(samples, kept, sizeof(*samples), compare);
	printf("{\"done\": %ld, \"failed\": %ld, \"seconds\": %.6f, \"cpu_us\": %.1f, \"p50_us\": %.2f, "
	       "\"p99_us\": %.2f}\n",
	       done, failed, seconds, used * 1e6, kept ? samples[kept / 2] : 0., kept ? samples[kept * 99 / 100] : 0.);
	done = failed = 0;
	used = seconds = 0;
}

static void follow_orders(void)
{
	unsigned long long given;
	int at_once, milliseconds, where;
	char mode[8];

	while (scanf("%d %7s %d %d %llu", &where, mode, &at_once, &milliseconds, &given) == 5) {
		if (at_once < 1 || at_once > MOST_AT_ONCE)
			exit(2);
		pin(where);
		seed = (given + 1) * 0x9e3779b97f4a7c15;
		if (!strcmp(mode, "tell"))
			tell();
		else if (!strcmp(mode, "flood"))
			flood(at_once, milliseconds * 1e-3);
		else
			cell(!strcmp(mode, "keep"), at_once, milliseconds * 1e-3);
		fflush(stdout);
	}
}

int main(int count, char **words)
{
	if (count == 5 && !strcmp(words[1], "serve")) {
		pin(atoi(words[2]));
		serve(atoi(words[3]), atoi(words[4]));
	} else if (count == 4 && !strcmp(words[1], "drain")) {
		pin(atoi(words[2]));
		drain(atoi(words[3]));
	} else if (count == 3 && !strcmp(words[1], "ask")) {
		read_destinations(words[2]);
		follow_orders();
	} else {
		return 2;
	}
	return 0;
}
