/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services, packet by packet: the first of a connection chooses a backend and makes two entries in conntrack, one for each
 * direction; all others only do what theirs says.
 *
 * Two connections of one client to one backend must not look alike to it. A port is lent to the second, where the first
 * lives: so is told apart what a client sends to two services of the same backend, or to a backend itself, from one port. */
#ifndef CLUSTERMESH_SERVICE_H
#define CLUSTERMESH_SERVICE_H

#include "icmp.h"
#include "lb.h"
#include "refuse.h"
#include "strict.h"

enum { PORTS_TRIED = 16 };

/* Who hands a packet over. */
enum side { SIDE_POD, SIDE_OUTSIDE };

static __always_inline struct node_config *this_node(void)
{
	__u32 all = 0;

	return bpf_map_lookup_elem(MAP(node_config), &all);
}

static __always_inline int drop(struct __sk_buff *skb, enum reason reason)
{
	report_packet(skb, reason, EVENT_DROP);
	return TC_ACT_SHOT;
}

static __always_inline int refuse_for(struct __sk_buff *skb, const struct packet *packet, enum reason reason)
{
	report_packet(skb, reason, EVENT_DROP);
	return refuse_packet(skb, packet);
}

/* The same connection has the same seed. */
static __always_inline __u32 seed_of(const struct ct_key *ends)
{
	__u32 seed = (__u32)ends->source_port << 16 | ends->destination_port;

	seed = lb_mix(seed ^ ends->source.word[3]) ^ ends->source.word[2] ^ ends->source.word[1] ^ ends->source.word[0];
	return lb_mix(seed ^ ends->destination.word[3]) ^ ends->destination.word[2] ^ ends->destination.word[1];
}

/* Whether the backend of this connection is there, by its id and its address: ids are given again. */
static __always_inline struct lb_backend *backend_of(const struct ct_entry *forward)
{
	struct lb_backend *backend = bpf_map_lookup_elem(MAP(lb_backends), &forward->backend_id);

	if (!backend || backend->port != forward->destination_port ||
	    !is_same_address(&backend->address, &forward->destination))
		return NULL;
	return backend;
}

/* Whether this packet begins a connection although there is an entry for it. */
static __always_inline bool begins_anew(const struct ct_entry *entry, const struct packet *packet, __u32 now)
{
	struct lb_backend *backend;

	if (entry->flags & CT_REPLY)
		return false;
	if (packet->ends.protocol != IPPROTO_TCP) {
		struct ct_key key = ct_pair_key(entry, packet->ends.protocol);
		struct ct_entry *pair;

		if (ct_is_live(entry, now))
			return false;
		pair = bpf_map_lookup_elem(MAP(ct), &key);
		return !pair || !ct_is_live(pair, now); /* who only listens is there, too */
	}
	if (!is_syn(packet))
		return false;
	if (!ct_is_live(entry, now) || ct_is_closed(entry->flags) || entry->flags & CT_RESET)
		return true;
	if (entry->flags & CT_DIRECT)
		return false;
	backend = backend_of(entry);
	return !backend || backend->state != BACKEND_ACTIVE;
}

/* A port of ours that nobody has with this backend, from a random one on. */
static __always_inline __be16 lend_port(const struct node_config *node)
{
	__u32 count = (__u32)node->port_last - node->port_first + 1;

	return bpf_htons(node->port_first + (((__u64)bpf_get_prandom_u32() * count) >> 32));
}

/* Whether what has the ends of a new connection's replies may be taken over: what has expired; or what has ended, where the
 * client itself has chosen its port. */
static __always_inline bool is_over(const struct ct_entry *entry, bool is_own_port, __u32 now)
{
	return !ct_is_live(entry, now) || (is_own_port && ct_is_closed(entry->flags));
}

/* Whether the client speaks to this backend already from this port, and not by a service. */
static __always_inline bool speaks_directly(const struct ct_entry *forward, __u8 protocol, __u32 now)
{
	struct ct_key key = {
		.source = forward->source,
		.destination = forward->destination,
		.source_port = forward->source_port,
		.destination_port = forward->destination_port,
		.protocol = protocol,
	};
	struct ct_entry *direct = bpf_map_lookup_elem(MAP(ct), &key);

	if (!direct || !(direct->flags & CT_DIRECT))
		return false;
	if (!is_over(direct, true, now))
		return true;
	bpf_map_delete_elem(MAP(ct), &key);
	return false;
}

/* Finds ends for the replies that are nobody else's, and takes them. 0, or why not. */
static __always_inline enum reason claim(const struct node_config *node, struct ct_new *new,
					 const struct packet *packet, bool is_own_port, __u32 now)
{
	for (__u32 try = 0; try < PORTS_TRIED; try++) {
		struct ct_entry *other;

		if (!is_own_port) {
			if (packet->ends.protocol == IPPROTO_SCTP || !node->port_first)
				break;
			new->forward.source_port = lend_port(node);
			new->forward.flags |= CT_LENT;
			new->reply.flags |= CT_LENT;
			new->reply_key.destination_port = new->forward.source_port;
		}
		if (!bpf_map_update_elem(MAP(ct), &new->reply_key, &new->reply, BPF_NOEXIST))
			return 0;
		other = bpf_map_lookup_elem(MAP(ct), &new->reply_key);
		if (!other)
			return REASON_DROP_CT_FULL;
		if (ct_is_pair(other, &packet->ends) || is_over(other, is_own_port, now)) {
			if (!ct_is_pair(other, &packet->ends))
				ct_delete_pair(other, &new->reply_key);
			if (bpf_map_update_elem(MAP(ct), &new->reply_key, &new->reply, BPF_ANY))
				return REASON_DROP_CT_FULL;
			return 0;
		}
		is_own_port = false;
	}
	return REASON_DROP_NO_PORT;
}

static __always_inline void tell_new(struct __sk_buff *skb, const struct packet *packet, const struct ct_entry *forward)
{
	struct event *event = event_of(REASON_NAT_NEW, EVENT_LB);

	if (!event)
		return;
	event->ifindex = skb->ifindex;
	event->protocol = packet->ends.protocol;
	event->source = packet->ends.source;
	event->destination = packet->ends.destination;
	event->source_port = packet->ends.source_port;
	event->destination_port = packet->ends.destination_port;
	event->new_source = forward->source;
	event->new_destination = forward->destination;
	event->new_source_port = forward->source_port;
	event->new_destination_port = forward->destination_port;
	event_submit(event);
}

static __always_inline void set_way(const struct node_config *node, struct ct_entry *entry)
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

static __always_inline int send(struct __sk_buff *skb, const struct packet *packet, __u8 way, __u32 device)
{
	if (way == WAY_PEER)
		return bpf_redirect_peer(device, 0);
	return way == WAY_BACK ? send_back(skb, packet) : NEXT;
}

static __always_inline int translate(struct __sk_buff *skb, const struct packet *packet, const struct ct_entry *entry)
{
	struct ends to = { entry->source, entry->destination, entry->source_port, entry->destination_port };
	__u32 device = entry->way_device;
	__u8 way = entry->way;

	count(entry->flags & CT_REPLY ? REASON_NAT_REPLY : REASON_NAT_FORWARD);
	if (packet->flags & PACKET_FRAGMENTED)
		remember_fragment(packet);
	if (nat(skb, packet, &to))
		return TC_ACT_SHOT;
	return send(skb, packet, way, device);
}

/* An ICMP error, of whoever. Those about packets that are none of ours are left alone. */
static __always_inline int translate_error(struct __sk_buff *skb, const struct packet *packet)
{
	struct ct_entry *entry;
	struct quote quote;
	struct ends to;
	__u32 device;
	__u8 way;

	if (!read_quote(skb, packet, &quote))
		return NEXT;
	entry = bpf_map_lookup_elem(MAP(ct), &quote.back);
	if (!entry || entry->flags & (CT_DIRECT | CT_AT_EGRESS))
		return NEXT;
	to = (struct ends){ entry->source, entry->destination, entry->source_port, entry->destination_port };
	device = entry->way_device;
	way = entry->way;
	count(REASON_NAT_ERROR);
	if (nat_error(skb, packet, &quote, &to))
		return TC_ACT_SHOT;
	return send(skb, packet, way, device);
}

/* What a pod sends to no service is kept in mind, so that what it sends to one is not taken for the same connection. True
 * where that is all; false where it must be told apart from a service's that lives. */
static __always_inline bool note_direct(struct __sk_buff *skb, struct ct_new *new, const struct packet *packet,
					__u32 now)
{
	struct ct_entry *reply;

	new->reply_key = (struct ct_key){
		.source = packet->ends.destination,
		.destination = packet->ends.source,
		.source_port = packet->ends.destination_port,
		.destination_port = packet->ends.source_port,
		.protocol = packet->ends.protocol,
	};
	reply = bpf_map_lookup_elem(MAP(ct), &new->reply_key);
	if (reply && reply->flags & CT_DIRECT)
		return true; /* an answer */
	if (reply && !is_over(reply, true, now))
		return false;
	if (reply) {
		ct_delete_pair(reply, &new->reply_key);
		bpf_map_delete_elem(MAP(ct), &new->reply_key);
	}
	__builtin_memset(&new->forward, 0, sizeof(new->forward));
	new->forward.flags = CT_DIRECT;
	new->forward.from_device = skb->ifindex;
	new->forward.expires = now + ct_timeout(packet->ends.protocol, 0);
	bpf_map_update_elem(MAP(ct), &packet->ends, &new->forward, BPF_ANY);
	return true;
}

/* The two entries of a connection, as far as they are known before a port is claimed. False where nothing of this node's
 * could stand for the client. */
static __always_inline bool plan(struct __sk_buff *skb, const struct node_config *node, struct ct_new *new,
				 const struct packet *packet, const struct lb_chosen *chosen, __u32 now)
{
	const struct ct_key *ends = &packet->ends;
	struct ct_entry *forward = &new->forward, *reply = &new->reply;

	__builtin_memset(forward, 0, sizeof(*forward));
	__builtin_memset(reply, 0, sizeof(*reply));
	forward->source = ends->source;
	forward->destination = chosen->address;
	forward->source_port = ends->source_port;
	forward->destination_port = chosen->port;
	forward->service_id = chosen->service_id;
	forward->backend_id = chosen->backend_id;
	forward->from_device = skb->ifindex;
	forward->packets = 1;
	forward->bytes = packet->length;
	set_way(node, forward);
	reply->source = ends->destination;
	reply->destination = ends->source;
	reply->source_port = ends->destination_port;
	reply->destination_port = ends->source_port;
	reply->service_id = chosen->service_id;
	reply->backend_id = chosen->backend_id;
	reply->flags = CT_REPLY;
	set_way(node, reply);
	if (is_same_address(&chosen->address, &ends->source)) {
		forward->source = packet->flags & PACKET_IPV6 ? node->node6 : node->node4;
		forward->way = reply->way = WAY_BACK;
		if (!forward->source.word[3])
			return false;
	}
	forward->expires = reply->expires = now + ct_timeout(ends->protocol, 0);
	new->reply_key = ct_pair_key(forward, ends->protocol);
	return true;
}

/* The first packet of a connection, or one of none. */
static __always_inline int begin(struct __sk_buff *skb, const struct packet *packet, __u32 now)
{
	const struct ct_key *ends = &packet->ends;
	struct lb_service_key key = { .address = ends->destination, .port = ends->destination_port, .protocol = ends->protocol };
	struct lb_service *service = lb_find(&key, false);
	struct node_config *node = this_node();
	struct ct_new *new = scratch();
	struct lb_chosen chosen;
	enum reason reason;
	bool is_own_port;

	if (!node || !new)
		return NEXT;
	if (ends->protocol == IPPROTO_TCP && !is_syn(packet))
		return service ? refuse_for(skb, packet, REASON_DROP_NO_CONNECTION) : NEXT;
	if (service) {
		if (lb_choose(skb, service, &ends->source, seed_of(ends), &chosen) != TRANSLATED)
			return refuse_for(skb, packet, REASON_DROP_NO_BACKEND);
		if (ends->protocol == IPPROTO_SCTP && chosen.port != ends->destination_port)
			return refuse_for(skb, packet, REASON_DROP_SCTP_PORT);
	} else {
		if (note_direct(skb, new, packet, now))
			return NEXT;
		chosen = (struct lb_chosen){ .address = ends->destination, .port = ends->destination_port };
	}
	if (!plan(skb, node, new, packet, &chosen, now))
		return drop(skb, REASON_DROP_NO_ADDRESS);
	is_own_port = service && !speaks_directly(&new->forward, ends->protocol, now);
	reason = claim(node, new, packet, is_own_port, now);
	if (!reason && bpf_map_update_elem(MAP(ct), ends, &new->forward, BPF_ANY))
		reason = REASON_DROP_CT_FULL;
	if (reason)
		return refuse_for(skb, packet, reason);
	tell_new(skb, packet, &new->forward);
	return translate(skb, packet, &new->forward);
}

/* Looked at about once a second: whether the backend is still there. A direct one is nobody's. */
static __always_inline bool is_lost(const struct ct_entry *entry)
{
	return !(entry->flags & (CT_REPLY | CT_DIRECT)) && entry->service_id && !backend_of(entry);
}

/* A packet of a pod that has ports, its source checked. */
static __always_inline int serve(struct __sk_buff *skb, const struct packet *packet, struct ct_entry *entry, __u32 now)
{
	bool anew = !entry || begins_anew(entry, packet, now);

	bool lost = !anew && ct_touch(entry, packet, now) && is_lost(entry);

	if (entry && (anew || lost)) {
		ct_delete_pair(entry, &packet->ends);
		bpf_map_delete_elem(MAP(ct), &packet->ends);
	}
	if (lost && packet->ends.protocol == IPPROTO_TCP)
		return refuse_for(skb, packet, REASON_DROP_NO_CONNECTION);
	if (anew || lost)
		return begin(skb, packet, now);
	return entry->flags & (CT_DIRECT | CT_AT_EGRESS) ? NEXT : translate(skb, packet, entry);
}

#endif
