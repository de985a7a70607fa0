/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The entry points. Services are translated at the socket (sock.h), and packet by packet where no socket of ours was asked
 * (service.h), those from outside to elsewhere before the stack (xdp.h); encryption is enforced at the device that leads to
 * other nodes (strict.h), and where a pod's packets come from at the pod's own (source.h). */
#include "outside.h"
#include "pod.h"
#include "sock_addr.h"
#include "strict.h"
#include "xdp.h"

/* As every file here: helpers that are reserved for GPL programs (ring buffers, routes, neighbours) may be used. */
DECLARE_LICENSE("Dual BSD/GPL");

/* A socket that is closed means nothing any more. */
SEC("cgroup/sock_release")
int socket_release(struct bpf_sock *ctx)
{
	meant_free(bpf_get_socket_cookie(ctx));
	return SOCK_ALLOW;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct peer at = read4(ctx);

	return may_bind(ctx, &at);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct peer at = read6(ctx);

	return may_bind(ctx, &at);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct peer to = read4(ctx);
	enum verdict verdict = forward_connect(ctx, &to);

	if (verdict == TRANSLATED)
		write4(ctx, &to);
	return verdict == REJECT ? SOCK_REJECT : SOCK_ALLOW;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct peer to = read6(ctx);
	enum verdict verdict = forward_connect(ctx, &to);

	if (verdict == TRANSLATED)
		write6(ctx, &to);
	return verdict == REJECT ? SOCK_REJECT : SOCK_ALLOW;
}

/* Mapped addresses come here too: the kernel sends such a datagram as IPv4. */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct peer to = read4(ctx);
	enum verdict verdict = forward_datagram(ctx, &to);

	if (verdict == TRANSLATED)
		write4(ctx, &to);
	return verdict == REJECT ? SOCK_REJECT : SOCK_ALLOW;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct peer to = read6(ctx);
	enum verdict verdict = forward_datagram(ctx, &to);

	if (verdict == TRANSLATED)
		write6(ctx, &to);
	return verdict == REJECT ? SOCK_REJECT : SOCK_ALLOW;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct peer from = read4(ctx);

	if (reverse(ctx, &from) == TRANSLATED) {
		count(REASON_REPLY);
		write4(ctx, &from);
	}
	return SOCK_ALLOW;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct peer from = read6(ctx);

	if (reverse(ctx, &from) == TRANSLATED) {
		count(REASON_REPLY);
		write6(ctx, &from);
	}
	return SOCK_ALLOW;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct peer from = read4(ctx);

	if (reverse(ctx, &from) == TRANSLATED)
		write4(ctx, &from);
	return SOCK_ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct peer from = read6(ctx);

	if (reverse(ctx, &from) == TRANSLATED)
		write6(ctx, &from);
	return SOCK_ALLOW;
}

SEC("tc")
int strict_ingress(struct __sk_buff *skb)
{
	return finish(skb, require_encryption(skb, REASON_DROP_CLEAR_INGRESS));
}

SEC("tc")
int strict_egress(struct __sk_buff *skb)
{
	return finish(skb, require_encryption(skb, REASON_DROP_CLEAR_EGRESS));
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	return finish(skb, serve_pod(skb));
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	return finish(skb, answer(skb, ETH_HLEN, 0));
}

SEC("tc")
int from_outside(struct __sk_buff *skb)
{
	return finish(skb, serve_outside(skb, ETH_HLEN));
}

SEC("tc")
int to_outside(struct __sk_buff *skb)
{
	return finish(skb, answer(skb, ETH_HLEN, CT_AT_EGRESS));
}

SEC("xdp")
int xdp_outside(struct xdp_md *xdp)
{
	return finish_frame(xdp, accelerate(of_xdp(xdp)));
}

/* A device without a link layer. */
SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	return finish(skb, serve_outside(skb, 0));
}

SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	return finish(skb, answer(skb, 0, CT_AT_EGRESS));
}

/* Attached nowhere: the agent runs it over frames of its own (agent/eviction/sweeper.py), whose cookies are of sockets
 * that it finds nowhere. Says how many of their ways are free now. */
SEC("tc")
int sweep_meant(struct __sk_buff *skb)
{
	__u32 at, freed = 0;
	__u64 cookie;
	__u8 is_end;

	if (bpf_skb_load_bytes(skb, 0, &is_end, sizeof(is_end)))
		return 0;
	for (at = 0; at < SWEEP_MOST; at++) {
		if (bpf_skb_load_bytes(skb, SWEEP_HEAD + at * sizeof(cookie), &cookie, sizeof(cookie)))
			break;
		freed += meant_sweep(cookie, is_end);
	}
	return freed;
}
