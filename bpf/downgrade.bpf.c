/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Readers of what sockets meant as layout v1 wrote it down, attached before an agent of that version exchanges its hooks
 * one after another: what its sendmsg and connect write is shown also before its own readers run. */
#include <linux/bpf.h>
#include <linux/types.h>

#include "maps.h"
#include <bpf/bpf_endian.h>

DECLARE_LICENSE("Dual BSD/GPL");

struct lb4_reverse_key {
	__u64 cookie;
	__be32 address;
	__be16 port;
	__u16 pad;
};

struct lb4_reverse {
	__be32 address;
	__be16 port;
	__u16 pad;
};

DECLARE_MAP(lb4_reverse_sk, BPF_MAP_TYPE_LRU_HASH, struct lb4_reverse_key, struct lb4_reverse, 65536, 0);

enum { SOCK_ALLOW = 1 };

static __always_inline struct lb4_reverse *meant(struct bpf_sock_addr *ctx, __be32 address)
{
	struct lb4_reverse_key key = {
		.cookie = bpf_get_socket_cookie(ctx),
		.address = address,
		.port = (__be16)ctx->user_port,
	};

	return bpf_map_lookup_elem(MAP(lb4_reverse_sk), &key);
}

static __always_inline int show4(struct bpf_sock_addr *ctx)
{
	struct lb4_reverse *service = meant(ctx, ctx->user_ip4);

	if (service) {
		ctx->user_ip4 = service->address;
		ctx->user_port = service->port;
	}
	return SOCK_ALLOW;
}

static __always_inline int show_mapped(struct bpf_sock_addr *ctx)
{
	struct lb4_reverse *service;

	if (ctx->user_ip6[0] || ctx->user_ip6[1] || ctx->user_ip6[2] != bpf_htonl(0xffff))
		return SOCK_ALLOW;
	service = meant(ctx, ctx->user_ip6[3]);
	if (service) {
		ctx->user_ip6[3] = service->address;
		ctx->user_port = service->port;
	}
	return SOCK_ALLOW;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return show4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return show_mapped(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return show4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return show_mapped(ctx);
}
