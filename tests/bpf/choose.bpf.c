/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The choice of lb.h alone, for test runs: behind the Ethernet header the packet has a service key and a seed, and gets the
 * backend's address and port in the place of the service's. The verdict is the program's. */
#include <linux/if_ether.h>

#include "lb.h"

DECLARE_LICENSE("Dual BSD/GPL");

struct question {
	struct lb_service_key key;
	__u32 seed;
};

SEC("tc")
int choose(struct __sk_buff *skb)
{
	struct question question;
	struct peer to;
	enum verdict verdict;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &question, sizeof(question)))
		return -1;
	to.address = question.key.address;
	to.port = question.key.port;
	verdict = lb_translate(skb, &question.key, question.seed, &to);
	bpf_skb_store_bytes(skb, ETH_HLEN, &to.address, sizeof(to.address), 0);
	bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(to.address), &to.port, sizeof(to.port), 0);
	return verdict;
}
