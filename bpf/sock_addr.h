/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading and writing the address of a sock_addr context. An IPv6 socket that speaks IPv4, as Java's do, names mapped
 * addresses, which is what the maps hold: it needs no care. */
#ifndef CLUSTERMESH_SOCK_ADDR_H
#define CLUSTERMESH_SOCK_ADDR_H

#include "address.h"
#include "sock.h"

static __always_inline struct peer read4(struct bpf_sock_addr *ctx)
{
	return (struct peer){ .address = mapped(ctx->user_ip4), .port = (__be16)ctx->user_port };
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct peer *peer)
{
	ctx->user_ip4 = peer->address.word[3];
	ctx->user_port = peer->port;
}

static __always_inline struct peer read6(struct bpf_sock_addr *ctx)
{
	return (struct peer){
		.address = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } },
		.port = (__be16)ctx->user_port,
	};
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct peer *peer)
{
	ctx->user_ip6[0] = peer->address.word[0];
	ctx->user_ip6[1] = peer->address.word[1];
	ctx->user_ip6[2] = peer->address.word[2];
	ctx->user_ip6[3] = peer->address.word[3];
	ctx->user_port = peer->port;
}

#endif
