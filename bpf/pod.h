/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a pod sends and gets, at the node's end of its veth. */
#ifndef CLUSTERMESH_POD_H
#define CLUSTERMESH_POD_H

#include "service.h"
#include "source.h"

/* What conntrack knows to come from this device was looked at before. */
static __always_inline int serve_pod(struct __sk_buff *skb)
{
	struct ct_entry *entry = NULL;
	struct packet packet;
	enum content content = parse(skb, ETH_HLEN, &packet);

	if (content == CONTENT_FLOW)
		entry = bpf_map_lookup_elem(MAP(ct), &packet.ends);
	if (!entry || entry->from_device != skb->ifindex) {
		int verdict = check_source(skb);

		if (verdict != NEXT)
			return verdict;
		if (entry)
			entry->from_device = skb->ifindex;
	}
	if (content == CONTENT_ERROR)
		return translate_error(skb, &packet);
	return content == CONTENT_FLOW ? serve(skb, &packet, entry, ct_now()) : NEXT;
}

/* Replies that came by the kernel's way get back the service's address here. */
static __always_inline int answer_pod(struct __sk_buff *skb)
{
	struct ct_entry *entry;
	struct packet packet;
	enum content content = parse(skb, ETH_HLEN, &packet);

	if (content == CONTENT_ERROR)
		return translate_error(skb, &packet);
	if (content != CONTENT_FLOW)
		return NEXT;
	entry = bpf_map_lookup_elem(MAP(ct), &packet.ends);
	if (!entry || !(entry->flags & CT_REPLY))
		return NEXT;
	ct_touch(entry, &packet, ct_now());
	return translate(skb, &packet, entry);
}

#endif
