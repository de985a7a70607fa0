/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What comes from outside, and from other nodes: calls of services that may be called from there, and replies to what went out
 * in this node's name. */
#ifndef CLUSTERMESH_OUTSIDE_H
#define CLUSTERMESH_OUTSIDE_H

#include <linux/if_packet.h>

#include "service.h"

enum { VLAN_NUMBER = 0xfff };

/* Of a VLAN: it is that one's device that leads outside. Number 0 is none, and says only how urgent the frame is. */
static __always_inline bool is_of_vlan(const struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & VLAN_NUMBER;
}

/* `network`: where a packet of this device has its network header. A frame for another machine is none of ours. */
static __always_inline int serve_outside(struct __sk_buff *skb, __u16 network)
{
	struct ct_scratch *space = scratch();
	enum content content;

	if (!space || skb->pkt_type != PACKET_HOST || is_of_vlan(skb))
		return NEXT;
	tell_egress(skb, 0);
	content = parse(of_skb(skb), network, &space->packet);
	if (content == CONTENT_ERROR)
		return translate_error(skb, false, SIDE_OUTSIDE);
	if (content != CONTENT_FLOW)
		return NEXT;
	return serve(skb, space, bpf_map_lookup_elem(MAP(ct), &space->packet.ends), SIDE_OUTSIDE);
}

#endif
