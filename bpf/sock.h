/* SPDX-License-Identifier: Apache-2.0 */
/* Services at the socket: the address is changed once, when a socket connects or sends, and no packet is touched. */
#ifndef CLUSTERMESH_SOCK_H
#define CLUSTERMESH_SOCK_H

#include <stdbool.h>
#include <linux/errno.h>
#include <bpf/bpf_endian.h>

#include "metrics.h"

/* How many slots are looked at before a service counts as having no backend. Userspace writes slots one by one, so a
 * slot may point nowhere for a moment; up to this many backends, none that is there is ever missed. */
#define PICK_ATTEMPTS 64

/* What a sock_addr program may return. */
enum { SOCK_REJECT = 0, SOCK_ALLOW = 1 };

/* What a step says: go on with the address as it is, with the address it wrote, or refuse. */
enum verdict { CONTINUE, TRANSLATED, REJECT };

struct peer {
	__be32 address;
	__be16 port;
};

/* Set at load. Without bpf_set_retval (before Linux 5.18) a refused connect fails with EPERM. */
const volatile bool has_set_retval = true;

static __always_inline struct lb4_backend *backend_at(struct lb4_service_key *key, __u16 slot)
{
	struct lb4_service *entry;
	struct lb4_backend *backend;

	key->slot = slot;
	entry = bpf_map_lookup_elem(&lb4_services, key);
	if (!entry)
		return NULL;
	backend = bpf_map_lookup_elem(&lb4_backends, &entry->backend_id);
	return backend && backend->state == BACKEND_ACTIVE ? backend : NULL;
}

/* The service is read again at each attempt: its count may just have been changed. */
static __always_inline enum verdict pick_backend(struct lb4_service_key *key, __u32 seed, struct peer *to)
{
	for (__u32 attempt = 0; attempt < PICK_ATTEMPTS; attempt++) {
		struct lb4_service *service;
		struct lb4_backend *backend;

		key->slot = 0;
		service = bpf_map_lookup_elem(&lb4_services, key);
		if (!service)
			return CONTINUE;
		if (!service->count)
			return REJECT;
		backend = backend_at(key, (seed + attempt) % service->count + 1);
		if (!backend)
			continue;
		if (attempt)
			count(REASON_PICK_RETRIED);
		to->address = backend->address;
		to->port = backend->port;
		return TRANSLATED;
	}
	return REJECT;
}

static __always_inline struct lb4_reverse_key reverse_key(struct bpf_sock_addr *ctx, const struct peer *peer)
{
	return (struct lb4_reverse_key){
		.cookie = bpf_get_socket_cookie(ctx),
		.address = peer->address,
		.port = peer->port,
	};
}

/* Read before written: a socket sending to one service again and again must not pay for an update each time. */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct peer *service, const struct peer *backend)
{
	struct lb4_reverse_key key = reverse_key(ctx, backend);
	struct lb4_reverse value = { .address = service->address, .port = service->port };
	struct lb4_reverse *known = bpf_map_lookup_elem(&lb4_reverse_sk, &key);

	if (known && known->address == value.address && known->port == value.port)
		return;
	if (bpf_map_update_elem(&lb4_reverse_sk, &key, &value, BPF_ANY))
		count(REASON_REVERSE_LOST);
}

/* As a port nobody listens on refuses: what kube-proxy's reject rule looks like to the caller, too. */
static __always_inline enum verdict refuse(void)
{
	count(REASON_DROP_NO_BACKEND);
	if (has_set_retval)
		bpf_set_retval(-ECONNREFUSED);
	return REJECT;
}

/* Turns a service's address in `to` into a backend's. */
static __always_inline enum verdict forward(struct bpf_sock_addr *ctx, struct peer *to, __u32 seed)
{
	struct lb4_service_key key = { .address = to->address, .port = to->port, .protocol = ctx->protocol };
	struct peer service = *to;
	enum verdict verdict = pick_backend(&key, seed, to);

	if (verdict == TRANSLATED)
		remember(ctx, &service, to);
	return verdict == REJECT ? refuse() : verdict;
}

/* A socket connected anew, to this address itself, must not be shown a service it meant before. Sending proves nothing of
 * the kind: what a connected IPv6 socket sends to a mapped address comes by as if it named the backend. */
static __always_inline void forget(struct bpf_sock_addr *ctx, const struct peer *to)
{
	struct lb4_reverse_key key = reverse_key(ctx, to);

	if (bpf_map_lookup_elem(&lb4_reverse_sk, &key))
		bpf_map_delete_elem(&lb4_reverse_sk, &key);
}

/* forward() for a socket that connects. */
static __always_inline enum verdict forward_connect(struct bpf_sock_addr *ctx, struct peer *to)
{
	enum verdict verdict = forward(ctx, to, bpf_get_prandom_u32());

	if (verdict == TRANSLATED)
		count(REASON_CONNECT);
	else if (verdict == CONTINUE)
		forget(ctx, to);
	return verdict;
}

/* Datagrams of one socket to one service stay with one backend while its backends stay as they are, as conntrack would
 * have it: protocols over UDP have state too. */
static __always_inline __u32 datagram_seed(struct bpf_sock_addr *ctx)
{
	__u32 hash = (__u32)bpf_get_socket_cookie(ctx) ^ ctx->user_ip4 ^ (ctx->user_port << 16);

	hash = (hash ^ (hash >> 16)) * 0x85ebca6b; /* the finalizer of MurmurHash3 */
	hash = (hash ^ (hash >> 13)) * 0xc2b2ae35;
	return hash ^ (hash >> 16);
}

/* forward() for one datagram. */
static __always_inline enum verdict forward_datagram(struct bpf_sock_addr *ctx, struct peer *to)
{
	enum verdict verdict = forward(ctx, to, datagram_seed(ctx));

	if (verdict == TRANSLATED)
		count(REASON_DATAGRAM);
	return verdict;
}

/* Turns a backend's address in `from` into the service's that this socket meant. */
static __always_inline enum verdict reverse(struct bpf_sock_addr *ctx, struct peer *from)
{
	struct lb4_reverse_key key = reverse_key(ctx, from);
	struct lb4_reverse *service = bpf_map_lookup_elem(&lb4_reverse_sk, &key);

	if (!service)
		return CONTINUE;
	from->address = service->address;
	from->port = service->port;
	return TRANSLATED;
}

#endif
