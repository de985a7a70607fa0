/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a pod sends, it sends from its own addresses: looked at where it leaves the pod, before anything else happens to it.
 *
 * A frame that is neither IP nor ARP has nowhere to go, and is no way around: of two VLAN tags of number 0 the kernel takes
 * one off before this program and the other after it. */
#ifndef CLUSTERMESH_SOURCE_H
#define CLUSTERMESH_SOURCE_H

#include "strict.h"

/* As a neighbour, to neighbours: by an address of the link, or by none before it has one. */
static __always_inline bool is_among_neighbours(const struct address ends[2])
{
	return (is_of_the_link(&ends[0]) || !is_somebody(&ends[0])) && is_of_the_link(&ends[1]);
}

static __always_inline bool is_from_its_pod(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct pod_source *own;
	struct address ends[2];

	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return true;
	own = bpf_map_lookup_elem(MAP(pod_sources), &device);
	if (!own || !read_addresses(skb, ends))
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return is_same_address(&ends[0], &own->ipv4);
	if (is_among_neighbours(ends))
		return true;
	return is_somebody(&own->ipv6) && is_same_address(&ends[0], &own->ipv6);
}

/* NEXT, or the drop. */
static __always_inline int check_source(struct __sk_buff *skb)
{
	return is_from_its_pod(skb) ? NEXT : dropped(REASON_DROP_SOURCE);
}

#endif
