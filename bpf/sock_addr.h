/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing the address of a sock_addr context: IPv4, and IPv4 mapped into an IPv6 socket (::ffff:a.b.c.d),
 * which is how Java and others speak IPv4. */
#ifndef CLUSTERMESH_SOCK_ADDR_H
#define CLUSTERMESH_SOCK_ADDR_H

#include "sock.h"

static __always_inline struct peer read4(struct bpf_sock_addr *ctx)
{
	return (struct peer){ .address = ctx->user_ip4, .port = (__be16)ctx->user_port };
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct peer *peer)
{
	ctx->user_ip4 = peer->address;
	ctx->user_port = peer->port;
}

static __always_inline bool is_v4_mapped(struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

static __always_inline struct peer read_mapped(struct bpf_sock_addr *ctx)
{
	return (struct peer){ .address = ctx->user_ip6[3], .port = (__be16)ctx->user_port };
}

static __always_inline void write_mapped(struct bpf_sock_addr *ctx, const struct peer *peer)
{
	ctx->user_ip6[3] = peer->address;
	ctx->user_port = peer->port;
}

#endif
