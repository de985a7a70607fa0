/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every connected socket that means a service, in all network namespaces at once, what it means and a struct meant_socket:
 * what the agent reads to know who is connected to a backend that went. It walks lb_meant, so it costs what is in it. */
#include <bpf/bpf_core_read.h>

#include "iterators.h"

DECLARE_LICENSE("Dual BSD/GPL");

static __always_inline struct address of_ipv6(const struct in6_addr *address)
{
	struct address found;

	BPF_CORE_READ_INTO(&found, address, in6_u.u6_addr32);
	return found;
}

/* One that has been connected to somewhere else since, or is connected no more, means nothing. */
static __always_inline bool is_connected_to(struct sock_common *sk, const struct lb_meant *meant)
{
	struct address peer = BPF_CORE_READ(sk, skc_family) == FAMILY_IPV4 ? mapped(BPF_CORE_READ(sk, skc_daddr)) :
									     of_ipv6(&sk->skc_v6_daddr);

	return BPF_CORE_READ(sk, skc_state) != STATE_CLOSED && BPF_CORE_READ(sk, skc_dport) == meant->backend_port &&
	       is_same_address(&peer, &meant->backend);
}

SEC("iter/bpf_sk_storage_map")
int meant_sockets(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct lb_meant *meant = ctx->value;
	struct sock *sk = ctx->sk;
	struct meant_socket found;
	struct socket_alloc *file;

	if (!sk || !meant || !is_connected_to(&sk->__sk_common, meant))
		return 0;
	__builtin_memset(&found, 0, sizeof(found));
	found.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	found.source = found.family == FAMILY_IPV4 ? mapped(BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr)) :
						     of_ipv6(&sk->__sk_common.skc_v6_rcv_saddr);
	found.source_port = bpf_htons(BPF_CORE_READ(sk, __sk_common.skc_num));
	found.protocol = BPF_CORE_READ(sk, sk_protocol);
	found.device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	found.network = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	file = (struct socket_alloc *)BPF_CORE_READ(sk, sk_socket);
	found.inode = file ? BPF_CORE_READ(file, vfs_inode.i_ino) : 0; /* 0: closed, and being sent the rest of */
	found.cookie = bpf_get_socket_cookie(sk);
	bpf_seq_write(ctx->meta->seq, meant, sizeof(*meant));
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}
