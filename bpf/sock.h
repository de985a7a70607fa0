/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services at the socket: the address is changed once, when a socket connects or sends, and no packet is touched. */
#ifndef CLUSTERMESH_SOCK_H
#define CLUSTERMESH_SOCK_H

#include <linux/errno.h>

#include "address.h"
#include "lb.h"
#include "meant.h"

/* What a sock_addr program may return. */
enum { SOCK_REJECT = 0, SOCK_ALLOW = 1 };

/* Without bpf_set_retval (before Linux 5.18) a refused connect fails with EPERM. */
CONSTANT(bool, has_set_retval, true);

/* The cookie of the agent's network namespace, which is the node's. */
CONSTANT(__u64, node_netns, 0);

enum { TYPE_DATAGRAM = 2 }; /* SOCK_DGRAM, which linux/net.h has for the kernel alone */

static __always_inline struct lb_reverse_key reverse_key(struct bpf_sock_addr *ctx, const struct address *address,
							 __be16 port)
{
	return (struct lb_reverse_key){ .cookie = bpf_get_socket_cookie(ctx), .address = *address, .port = port };
}

/* What an unconnected socket means by its datagrams to this backend, or a connected one of this protocol. Read before
 * written: a socket that asks one service again and again must not pay for an update each time. */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct peer *service,
				     const struct lb_chosen *backend, __u16 protocol)
{
	struct lb_reverse_key key = reverse_key(ctx, &backend->address, backend->port);
	struct lb_reverse value = { .address = service->address, .port = service->port, .protocol = protocol };
	struct lb_reverse *known = bpf_map_lookup_elem(MAP(lb_reverse_sk), &key);

	if (known && known->port == value.port && is_same_address(&known->address, &value.address) &&
	    (known->protocol || !protocol))
		return;
	if (bpf_map_update_elem(MAP(lb_reverse_sk), &key, &value, BPF_ANY))
		count(REASON_REVERSE_LOST);
}

/* What a connected socket means: where there is no room for it among them, as an unconnected one. */
static __always_inline void mean(struct bpf_sock_addr *ctx, const struct peer *service, const struct lb_chosen *backend)
{
	struct lb_meant *meant = meant_for(bpf_get_socket_cookie(ctx));

	if (!meant) {
		count(REASON_MEANT_FULL);
		remember(ctx, service, backend, ctx->protocol);
		return;
	}
	meant->address = service->address;
	meant->backend = backend->address;
	meant->port = service->port;
	meant->backend_port = backend->port;
	meant->backend_id = backend->backend_id;
	meant->protocol = ctx->protocol;
	meant->suspected = false;
}

static __always_inline void turn(struct peer *to, const struct lb_chosen *backend)
{
	to->address = backend->address;
	to->port = backend->port;
}

/* Counted, and told with where the socket was sent: `to`, and instead `backend` unless that is NULL. */
static __always_inline void report_socket(struct bpf_sock_addr *ctx, enum reason reason, enum event_type type,
					  const struct peer *to, const struct lb_chosen *backend)
{
	struct event *event = event_of(reason, type);

	if (!event)
		return;
	event->cookie = bpf_get_socket_cookie(ctx);
	event->protocol = ctx->protocol;
	event->destination = to->address;
	event->destination_port = to->port;
	if (backend) {
		event->new_destination = backend->address;
		event->new_destination_port = backend->port;
	}
	event_submit(event);
}

/* As a port nobody listens on refuses: what kube-proxy's reject rule looks like to the caller, too. */
static __always_inline enum verdict refuse(struct bpf_sock_addr *ctx, const struct peer *service)
{
	report_socket(ctx, REASON_DROP_NO_BACKEND, EVENT_DROP, service, NULL);
	if (has_set_retval)
		bpf_set_retval(-ECONNREFUSED);
	return REJECT;
}

static __always_inline bool is_of_the_node(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == node_netns;
}

/* The service that is called at `to`, and its `key`. Loopback is another one's in each network namespace: only the node's
 * own has node ports there. */
static __always_inline struct lb_service *called(struct bpf_sock_addr *ctx, const struct peer *to, struct lb_service_key *key)
{
	struct lb_service *service;

	*key = (struct lb_service_key){ .address = to->address, .port = to->port, .protocol = ctx->protocol };
	service = lb_find(key, false);

	return service && is_loopback(&to->address) && !is_of_the_node(ctx) ? NULL : service;
}

/* To affinity all sockets of a network namespace are one client. */
static __always_inline struct address client_of(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	return (struct address){ { cookie, cookie >> 32, 0xffffffff, 0 } };
}

/* A backend for the service called at `to`. */
static __always_inline enum verdict forward(struct bpf_sock_addr *ctx, const struct peer *to, __u32 seed,
					    struct lb_chosen *backend)
{
	struct lb_service_key key;
	struct lb_service *service = called(ctx, to, &key);
	struct address client = {};
	enum verdict verdict;

	if (!service)
		return CONTINUE;
	if (service->affinity_seconds)
		client = client_of(ctx);
	verdict = lb_choose(&key, service, &client, seed, backend);
	return verdict == REJECT ? refuse(ctx, to) : verdict;
}

/* A socket connected anew, to this address itself, must not be shown a service it meant before. Sending proves nothing of
 * the kind: what a connected IPv6 socket sends to a mapped address comes by as if it named the backend. */
static __always_inline void forget(struct bpf_sock_addr *ctx, const struct peer *to)
{
	struct lb_reverse_key key;

	meant_free(bpf_get_socket_cookie(ctx));
	if (ctx->type != TYPE_DATAGRAM)
		return;
	key = reverse_key(ctx, &to->address, to->port);
	if (bpf_map_lookup_elem(MAP(lb_reverse_sk), &key))
		bpf_map_delete_elem(MAP(lb_reverse_sk), &key);
}

/* Turns the service's address that a socket connects to into a backend's. */
static __always_inline enum verdict forward_connect(struct bpf_sock_addr *ctx, struct peer *to)
{
	struct lb_chosen backend;
	enum verdict verdict = forward(ctx, to, bpf_get_prandom_u32(), &backend);

	if (verdict == CONTINUE) {
		forget(ctx, to);
		report_socket(ctx, REASON_CONNECT_DIRECT, EVENT_TRACE, to, NULL);
	}
	if (verdict != TRANSLATED)
		return verdict;
	mean(ctx, to, &backend);
	report_socket(ctx, REASON_CONNECT, EVENT_LB, to, &backend);
	turn(to, &backend);
	return TRANSLATED;
}

/* Datagrams of one socket to one service stay with one backend while its backends stay as they are, as conntrack would
 * have it: protocols over UDP have state too. */
static __always_inline __u32 datagram_seed(struct bpf_sock_addr *ctx, const struct peer *to)
{
	const struct address *address = &to->address;

	return lb_mix((__u32)bpf_get_socket_cookie(ctx) ^ address->word[0] ^ address->word[1] ^ address->word[2] ^
		      address->word[3] ^ ((__u32)to->port << 16));
}

/* Turns the service's address that a datagram is sent to into a backend's. */
static __always_inline enum verdict forward_datagram(struct bpf_sock_addr *ctx, struct peer *to)
{
	struct lb_chosen backend;
	enum verdict verdict = forward(ctx, to, datagram_seed(ctx, to), &backend);

	if (verdict != TRANSLATED)
		return verdict;
	remember(ctx, to, &backend, 0);
	report_socket(ctx, REASON_DATAGRAM, EVENT_LB, to, &backend);
	turn(to, &backend);
	return TRANSLATED;
}

/* Turns a backend's address in `from` into the service's that this socket meant. What older versions kept of connected
 * sockets is where datagrams' services are. */
static __always_inline enum verdict reverse(struct bpf_sock_addr *ctx, struct peer *from)
{
	struct lb_meant *meant = meant_by(bpf_get_socket_cookie(ctx));
	struct lb_reverse_key key;
	struct lb_reverse *service;

	if (meant && meant->backend_port == from->port && is_same_address(&meant->backend, &from->address)) {
		from->address = meant->address;
		from->port = meant->port;
		return TRANSLATED;
	}
	key = reverse_key(ctx, &from->address, from->port);
	service = bpf_map_lookup_elem(MAP(lb_reverse_sk), &key);
	if (!service)
		return CONTINUE;
	from->address = service->address;
	from->port = service->port;
	return TRANSLATED;
}

/* Whether what comes for this address and port is a service's that is called from outside. */
static __always_inline bool is_taken(struct bpf_sock_addr *ctx, const struct address *address)
{
	struct lb_service_key key = { .address = *address, .port = (__be16)ctx->user_port, .protocol = ctx->protocol };
	struct lb_service *service = bpf_map_lookup_elem(MAP(lb_services), &key);

	return service && service->kind != KIND_CLUSTER_IP;
}

/* :: stands for all addresses of both families, as it does for a socket unless that says otherwise. */
static __always_inline bool is_anywhere_taken(struct bpf_sock_addr *ctx, const struct address *address)
{
	struct address loopback4 = mapped(bpf_htonl(0x7f000001)), loopback6 = { { 0, 0, 0, bpf_htonl(1) } };
	bool is_any = !address->word[0] && !address->word[1] && !address->word[3];

	if (is_any && is_ipv4(address))
		return is_taken(ctx, &loopback4);
	if (is_any && !address->word[2])
		return is_taken(ctx, &loopback4) || is_taken(ctx, &loopback6);
	return is_taken(ctx, address);
}

/* A node's own socket would get nothing at a node port or host port: it is told so as if the port were in use. Those of
 * all addresses are loopback's, too. */
static __always_inline int may_bind(struct bpf_sock_addr *ctx, const struct peer *at)
{
	if (!at->port || !is_of_the_node(ctx) || !is_anywhere_taken(ctx, &at->address))
		return SOCK_ALLOW;
	report_socket(ctx, REASON_DROP_BIND, EVENT_DROP, at, NULL);
	if (has_set_retval)
		bpf_set_retval(-EADDRINUSE);
	return SOCK_REJECT;
}

#endif
