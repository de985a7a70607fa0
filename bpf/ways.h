/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How packets go on once they are translated. The kernel's own way always is one, but for what would come from an address of
 * this node's own there: the kernel takes such a packet for forged, so that it is sent on from here. */
#ifndef CLUSTERMESH_WAYS_H
#define CLUSTERMESH_WAYS_H

#include <linux/socket.h>

#include "refuse.h"
#include "strict.h"

enum { FAMILY_IPV4 = 2, FAMILY_IPV6 = 10 };

/* bpf_redirect_neigh(), which BCC declares with another number of arguments. */
static long (*redirect_neigh)(__u32 device, void *next_hop, int size, __u64 flags) = (void *)152;

static __always_inline struct node_config *this_node(void)
{
	__u32 all = 0;

	return bpf_map_lookup_elem(MAP(node_config), &all);
}

/* Into the pod whose address this is, where it is one of this node's and that is allowed; else the kernel's way. */
static __always_inline void choose_pod_way(const struct node_config *node, struct ct_entry *entry)
{
	struct pod_device *device;

	entry->way = WAY_STACK;
	if (!(node->flags & CONFIG_REDIRECT))
		return;
	device = bpf_map_lookup_elem(MAP(pod_devices), &entry->destination);
	if (!device)
		return;
	entry->way = WAY_PEER;
	entry->way_device = device->ifindex;
}

/* What the routes are asked: how a packet goes on that came as this one. */
static __always_inline void set_route(struct bpf_fib_lookup *route, struct frame frame, const struct address *source,
				      const struct address *destination, bool is_ipv6)
{
	__builtin_memset(route, 0, sizeof(*route));
	route->ifindex = frame_device(frame);
	if (is_ipv6) {
		route->family = FAMILY_IPV6;
		__builtin_memcpy(route->ipv6_src, source, sizeof(route->ipv6_src));
		__builtin_memcpy(route->ipv6_dst, destination, sizeof(route->ipv6_dst));
	} else {
		route->family = FAMILY_IPV4;
		route->ipv4_src = source->word[3];
		route->ipv4_dst = destination->word[3];
	}
}

/* Asks the routes for the way of a packet of this size. What the way takes is in its place then, where the kernel says so. */
static __always_inline long ask_route(struct frame frame, struct bpf_fib_lookup *route, const struct ct_entry *entry,
				      bool is_ipv6, __u16 size)
{
	set_route(route, frame, &entry->source, &entry->destination, is_ipv6);
	route->tot_len = size;
	return bpf_fib_lookup(frame.context, route, sizeof(*route), 0);
}

/* The device that leads to where the entry's packets go, as the routes have it: 0. Where none does what they say instead, of an
 * address of this node's own, and of one that they know nothing of, BPF_FIB_LKUP_RET_NOT_FWDED. */
static __always_inline long choose_route(struct frame frame, struct ct_new *new, struct ct_entry *entry, bool is_ipv6)
{
	struct bpf_fib_lookup *route = &new->route;
	long result = ask_route(frame, route, entry, is_ipv6, 1);

	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return result;
	entry->way = WAY_NEIGH;
	entry->way_device = route->ifindex;
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH) /* what the way takes is only said of what it does not take, then */
		result = ask_route(frame, route, entry, is_ipv6, LARGEST);
	entry->mtu = result == BPF_FIB_LKUP_RET_NO_NEIGH || route->tot_len == 1 ? 0 : route->tot_len;
	return 0;
}

/* A device may have been made again, and a route may have moved. Where there is none now, there may be one again. */
static __always_inline void renew_way(struct frame frame, struct ct_new *new, const struct packet *packet,
				      struct ct_entry *entry)
{
	struct pod_device *device;

	if (entry->way == WAY_PEER) {
		device = bpf_map_lookup_elem(MAP(pod_devices), &entry->destination);
		if (device)
			entry->way_device = device->ifindex;
	} else if (entry->way == WAY_NEIGH) {
		choose_route(frame, new, entry, packet->flags & PACKET_IPV6);
	}
}

/* Whether the packet is larger than the way takes: what one of many is that a device is still to cut. What might be cut into
 * fragments is, too: past the kernel nobody does, and it would take a packet with this node's own source for forged. */
static __always_inline bool is_too_large(struct frame frame, const struct packet *packet, __u32 mtu)
{
	__u32 size = packet->length;

	if (!mtu)
		return false;
	if (frame_segments(frame))
		size = packet->transport - packet->network + packet->head + frame_segments(frame) -
		       (packet->flags & PACKET_JUMBO ? JUMBO_HEADER : 0);
	return size > mtu;
}

/* A neighbour gets a frame; what came without one gets the room for it. */
static __always_inline int send_to_neighbour(struct __sk_buff *skb, const struct packet *packet, __u32 device)
{
	if (packet->network == 0 && bpf_skb_change_head(skb, ETH_HLEN, 0))
		return dropped(REASON_DROP_BROKEN);
	return redirect_neigh(device, NULL, 0, 0);
}

/* How a packet goes on. */
struct passage {
	__u32 device;
	__u32 mtu;
	__u8 way; /* enum way */
};

/* Whether a packet that is to go this way goes on as the kernel sends it. A pod is given frames: so does what came to it
 * without one. */
static __always_inline bool goes_by_stack(const struct packet *packet, __u8 way)
{
	return way == WAY_STACK || (way == WAY_PEER && !packet->network);
}

/* Is in skb->tc_index while the kernel takes a packet from one of its devices to another: that it was translated, so
 * that nothing is left to be done. */
enum { EGRESS_DONE = 0x636d };

/* A pod may have written anything there. */
static __always_inline void tell_egress(struct __sk_buff *skb, __u16 what)
{
	if (skb->tc_index != what)
		skb->tc_index = what;
}

/* At ingress, of what was translated there. */
static __always_inline int send(struct __sk_buff *skb, const struct packet *packet, const struct passage *passage)
{
	if (goes_by_stack(packet, passage->way)) {
		tell_egress(skb, EGRESS_DONE);
		return NEXT;
	}
	switch (passage->way) {
	case WAY_PEER:
		return bpf_redirect_peer(passage->device, 0);
	case WAY_NEIGH:
		return send_to_neighbour(skb, packet, passage->device);
	case WAY_BACK:
		return send_back(skb, packet);
	default:
		return NEXT;
	}
}

#endif
