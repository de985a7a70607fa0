/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a pod sends, at the node's end of its veth. */
#ifndef CLUSTERMESH_POD_H
#define CLUSTERMESH_POD_H

#include "service.h"
#include "source.h"

/* What conntrack knows to come from this device was looked at before. */
static __always_inline int serve_pod(struct __sk_buff *skb)
{
	struct ct_scratch *space = scratch();
	struct ct_direct *direct = NULL;
	struct ct_entry *entry = NULL;
	__u32 *from_device = NULL;
	enum content content;

	if (!space)
		return dropped(REASON_DROP_BROKEN);
	tell_egress(skb, 0);
	content = parse(of_skb(skb), ETH_HLEN, &space->packet);
	if (content == CONTENT_FLOW)
		entry = bpf_map_lookup_elem(MAP(ct), &space->packet.ends);
	if (entry)
		from_device = ct_is_from_outside(entry) ? NULL : &entry->from_device;
	else if (content == CONTENT_FLOW && !is_syn(&space->packet))
		direct = bpf_map_lookup_elem(MAP(ct_direct), &space->packet.ends);
	if (direct)
		from_device = &direct->from_device;
	if (!from_device || *from_device != skb->ifindex) {
		int verdict = check_source(skb);

		if (verdict != NEXT)
			return verdict;
		if (from_device)
			*from_device = skb->ifindex;
	}
	if (direct && ct_goes_on_directly(direct, &space->packet, ct_now()))
		return NEXT;
	if (content == CONTENT_ERROR)
		return translate_error(skb, false, SIDE_POD);
	return content == CONTENT_FLOW ? serve(skb, space, entry, SIDE_POD) : NEXT;
}

#endif
