/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services at the socket: the address is changed once, when a socket connects or sends, and no packet is touched. */
#ifndef CLUSTERMESH_SOCK_H
#define CLUSTERMESH_SOCK_H

#include <linux/errno.h>

#include "address.h"
#include "lb.h"

/* What a sock_addr program may return. */
enum { SOCK_REJECT = 0, SOCK_ALLOW = 1 };

/* Without bpf_set_retval (before Linux 5.18) a refused connect fails with EPERM. */
CONSTANT(bool, has_set_retval, true);

static __always_inline struct lb_reverse_key reverse_key(struct bpf_sock_addr *ctx, const struct peer *peer)
{
	return (struct lb_reverse_key){
		.cookie = bpf_get_socket_cookie(ctx),
		.address = peer->address,
		.port = peer->port,
	};
}

/* Sending is `repeated`, and read before written: a socket that asks one service again and again must not pay for an
 * update each time. */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct peer *service, const struct peer *backend,
				     bool repeated)
{
	struct lb_reverse_key key = reverse_key(ctx, backend);
	struct lb_reverse value = { .address = service->address, .port = service->port };
	struct lb_reverse *known = repeated ? bpf_map_lookup_elem(MAP(lb_reverse_sk), &key) : NULL;

	if (known && known->port == value.port && is_same_address(&known->address, &value.address))
		return;
	if (bpf_map_update_elem(MAP(lb_reverse_sk), &key, &value, BPF_ANY))
		report(ctx, REASON_REVERSE_LOST);
}

/* Counted, and told with where the socket was sent: `to`, and instead `backend` unless that is NULL. */
static __always_inline void report_socket(struct bpf_sock_addr *ctx, enum reason reason, enum event_type type,
					  const struct peer *to, const struct peer *backend)
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

/* Turns a service's address in `to` into a backend's. */
static __always_inline enum verdict forward(struct bpf_sock_addr *ctx, struct peer *to, __u32 seed, bool repeated)
{
	struct lb_service_key key = { .address = to->address, .port = to->port, .protocol = ctx->protocol };
	struct peer service = *to;
	enum verdict verdict = lb_translate(ctx, &key, seed, to);

	if (verdict == TRANSLATED) {
		remember(ctx, &service, to, repeated);
		report_socket(ctx, repeated ? REASON_DATAGRAM : REASON_CONNECT, EVENT_LB, &service, to);
	}
	return verdict == REJECT ? refuse(ctx, &service) : verdict;
}

/* A socket connected anew, to this address itself, must not be shown a service it meant before. Sending proves nothing of
 * the kind: what a connected IPv6 socket sends to a mapped address comes by as if it named the backend. */
static __always_inline void forget(struct bpf_sock_addr *ctx, const struct peer *to)
{
	struct lb_reverse_key key = reverse_key(ctx, to);

	if (bpf_map_lookup_elem(MAP(lb_reverse_sk), &key))
		bpf_map_delete_elem(MAP(lb_reverse_sk), &key);
}

/* forward() for a socket that connects. */
static __always_inline enum verdict forward_connect(struct bpf_sock_addr *ctx, struct peer *to)
{
	enum verdict verdict = forward(ctx, to, bpf_get_prandom_u32(), false);

	if (verdict == CONTINUE) {
		forget(ctx, to);
		report_socket(ctx, REASON_CONNECT_DIRECT, EVENT_TRACE, to, NULL);
	}
	return verdict;
}

/* Datagrams of one socket to one service stay with one backend while its backends stay as they are, as conntrack would
 * have it: protocols over UDP have state too. */
static __always_inline __u32 datagram_seed(struct bpf_sock_addr *ctx, const struct peer *to)
{
	const struct address *address = &to->address;

	return lb_mix((__u32)bpf_get_socket_cookie(ctx) ^ address->word[0] ^ address->word[1] ^ address->word[2] ^
		      address->word[3] ^ ((__u32)to->port << 16));
}

/* forward() for one datagram. */
static __always_inline enum verdict forward_datagram(struct bpf_sock_addr *ctx, struct peer *to)
{
	return forward(ctx, to, datagram_seed(ctx, to), true);
}

/* Turns a backend's address in `from` into the service's that this socket meant. */
static __always_inline enum verdict reverse(struct bpf_sock_addr *ctx, struct peer *from)
{
	struct lb_reverse_key key = reverse_key(ctx, from);
	struct lb_reverse *service = bpf_map_lookup_elem(MAP(lb_reverse_sk), &key);

	if (!service)
		return CONTINUE;
	from->address = service->address;
	from->port = service->port;
	return TRANSLATED;
}

#endif
