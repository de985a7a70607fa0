/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ends the sockets whose cookies are in `evicted`, of the network namespace that whoever reads is in: what they wait for
 * fails with ECONNABORTED, and a TCP peer is sent a reset. Needs bpf_sock_destroy (Linux 6.5). */
#include "iterators.h"
#include "meant.h"

DECLARE_LICENSE("Dual BSD/GPL");

extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

/* Who is to be ended, and to which backend was it connected when that was decided? */
DECLARE_MAP(evicted, BPF_MAP_TYPE_HASH, __u64, __u32, 65536, BPF_F_NO_PREALLOC);

static __always_inline int end(struct seq_file *seq, struct sock_common *sk)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	__u32 *backend_id = bpf_map_lookup_elem(MAP(evicted), &cookie);
	struct lb_meant *meant;

	if (!backend_id || sk->skc_state == STATE_CLOSED)
		return 0;
	meant = meant_by(cookie);
	if (!meant || meant->backend_id != *backend_id || bpf_sock_destroy(sk))
		return 0;
	meant_free(cookie);
	bpf_seq_write(seq, &cookie, sizeof(cookie));
	return 0;
}

SEC("iter/tcp")
int evict_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	return sk ? end(ctx->meta->seq, sk) : 0;
}

SEC("iter/udp")
int evict_udp(struct bpf_iter__udp *ctx)
{
	struct sock_common *sk = (struct sock_common *)ctx->udp_sk;

	return sk ? end(ctx->meta->seq, sk) : 0;
}
