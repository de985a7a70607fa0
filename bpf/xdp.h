/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Calls from outside of backends elsewhere, before the kernel has made anything of a frame: from one device to the same or
 * another, past the stack. Only packets of connections that go on are translated here, as their entries in conntrack say;
 * what opens or ends one, is refused, cut, too large or an error goes on to tc as it came (service.h). So does whatever there
 * is any doubt about: that is never wrong, and slower. */
#ifndef CLUSTERMESH_XDP_H
#define CLUSTERMESH_XDP_H

#include "service.h"

/* Whether the frame is for this machine. */
static __always_inline bool is_for(struct frame frame, const struct xdp_device *device)
{
	const void *to = frame_at(frame, 0, ETH_HLEN);

	return to && *(const __u32 *)to == device->head && *(const __u16 *)(to + 4) == device->tail;
}

/* Whether a device is still to complete the checksum, as that is between devices that have no wire between them: it is that
 * of the pseudo header alone, which other packets have by chance. */
static __always_inline bool has_partial_check(struct frame frame, const struct packet *packet)
{
	bool is_tcp = packet->ends.protocol == IPPROTO_TCP;
	__u32 at = packet->transport + (is_tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
	__u16 length = packet->length - (packet->transport - packet->network), *check = header(frame, at, sizeof(*check));

	return !check || *check == sum_fold16(sum_of_ends(&packet->ends, packet->ends.protocol, length));
}

/* Reads a packet of TCP or UDP that is whole; false for all others. */
static __always_inline bool parse_whole(struct frame frame, struct packet *packet)
{
	__u64 size = frame_end(frame) - frame_data(frame);

	if (!parse_network(frame, ETH_HLEN, packet) || packet->flags & (PACKET_FRAGMENTED | PACKET_LATER_FRAGMENT))
		return false;
	if ((packet->ends.protocol != IPPROTO_TCP && packet->ends.protocol != IPPROTO_UDP) ||
	    parse_transport(frame, packet) != CONTENT_FLOW)
		return false;
	if (ETH_HLEN + packet->length > size || packet->transport + packet->head > ETH_HLEN + packet->length)
		return false;
	return !has_partial_check(frame, packet);
}

/* Whether this is one more packet of a connection, which changes nothing of it but when it was last seen. */
static __always_inline bool goes_on(const struct ct_entry *entry, struct packet *packet, __u32 now)
{
	__u8 protocol = packet->ends.protocol;

	if (entry->way != WAY_NEIGH || !(entry->flags & CT_OUTSIDE) || entry->flags & CT_AT_EGRESS)
		return false;
	if (entry->flags & CT_REPLY && entry->from_device) /* it comes by the tunnel, or is forged */
		return false;
	if (protocol == IPPROTO_TCP ? packet->tcp & TCP_SYN : !ct_is_live(entry->expires, now))
		return false;
	if (is_unproven(entry, packet) || ct_flags_after(entry->flags, packet) != entry->flags)
		return false;
	return entry->expires == now + ct_timeout(protocol, entry->flags) || !is_lost(entry, packet);
}

/* Strict mode's programs do not see what is sent on from here: before and after, one end at least is no pod of the mesh. That
 * which is asked for first is this node's, and mostly the same. */
static __always_inline bool may_be_in_clear(const struct ct_key *from, const struct ends *to)
{
	bool is_pods = is_mesh_pod(&from->destination);

	if (is_pods && is_mesh_pod(&from->source))
		return false;
	if (!is_same_address(&to->source, &from->destination))
		is_pods = is_mesh_pod(&to->source);
	return !is_pods || !is_mesh_pod(&to->destination);
}

/* Where a packet with the ends `to` leaves, and to which neighbour; false where that is not known, or none of ours. */
static __always_inline bool find_way(struct frame frame, const struct packet *packet, const struct ends *to,
				     const struct xdp_device *device, struct bpf_fib_lookup *route)
{
	struct xdp_device *out;

	set_route(route, frame, &to->source, &to->destination, packet->flags & PACKET_IPV6);
	route->tot_len = packet->length;
	if (bpf_fib_lookup(frame.context, route, sizeof(*route), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	out = bpf_map_lookup_elem(MAP(xdp_devices), &route->ifindex);
	return out && out->mode == device->mode;
}

static __always_inline int accelerate(struct frame frame)
{
	__u32 index = frame_device(frame), now = ct_now();
	struct xdp_device *device = bpf_map_lookup_elem(MAP(xdp_devices), &index);
	struct ct_scratch *space = scratch();
	struct bpf_fib_lookup *route;
	struct ct_entry *entry;
	struct packet *packet;
	__u32 out;

	if (!device || !space || !is_for(frame, device))
		return XDP_PASS;
	packet = &space->packet;
	route = &space->new.route;
	if (!parse_whole(frame, packet))
		return XDP_PASS;
	entry = bpf_map_lookup_elem(MAP(ct), &packet->ends);
	if (!entry || !goes_on(entry, packet, now) || packet->hops <= 1 || is_too_large(frame, packet, entry->mtu))
		return XDP_PASS;
	read_ends(entry, &space->to);
	if (!may_be_in_clear(&packet->ends, &space->to) || !find_way(frame, packet, &space->to, device, route))
		return XDP_PASS;
	out = route->ifindex;
	if (frame_store(frame, 0, route->dmac, ETH_ALEN, 0) || frame_store(frame, ETH_ALEN, route->smac, ETH_ALEN, 0) ||
	    nat(frame, packet, &space->to, packet->hops - 1))
		return dropped(REASON_DROP_BROKEN);
	count(entry->flags & CT_REPLY ? REASON_NAT_REPLY : REASON_NAT_FORWARD);
	if (ct_touch(entry, packet, now))
		renew_way(frame, &space->new, packet, entry);
	return out == index ? XDP_TX : bpf_redirect(out, 0);
}

#endif
