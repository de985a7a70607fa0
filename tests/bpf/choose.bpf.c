/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The lookup and the choice of lb.h alone, for test runs: behind the Ethernet header the packet has a question, and gets what
 * was chosen in its place. The verdict is the program's. */
#include <linux/if_ether.h>

#include "lb.h"

DECLARE_LICENSE("Dual BSD/GPL");

struct question {
	struct lb_service_key key;
	__u32 seed;
	struct address client;
	__u32 outside;
	struct lb_service head; /* as it was read before the maps changed; id 0: as it is now */
};

enum { NOT_ALLOWED = 3 }; /* beside the verdicts */

static __always_inline int answer(struct question *question, struct lb_chosen *to)
{
	struct lb_service *service = lb_find(&question->key, question->outside);

	if (!service)
		return CONTINUE;
	if (question->head.service_id)
		service = &question->head;
	if (question->outside && !lb_may_ask(&question->key, service, &question->client))
		return NOT_ALLOWED;
	return lb_choose(&question->key, service, &question->client, question->seed, to);
}

SEC("tc")
int choose(struct __sk_buff *skb)
{
	struct question question;
	struct lb_chosen to = {};
	int verdict;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &question, sizeof(question)))
		return -1;
	verdict = answer(&question, &to);
	bpf_skb_store_bytes(skb, ETH_HLEN, &to, sizeof(to), 0);
	return verdict;
}
