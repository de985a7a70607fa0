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
#include "ways.h"

/* How many ports are drawn, the first of them mildly, and among how many one that nobody has is searched for in between. */
enum { PORTS_DRAWN = 12, PORTS_DRAWN_MILDLY = 4, PORTS_SEARCHED = 768, SEARCHES_IN_VAIN = 4 };

/* More of one direction, and it is no opening that is kept apart. */
enum { PACKETS_UNPROVEN = 16 };

/* In ticks: where ports are short, what nothing came back of for so long gives its own away. */
enum gives_way {
	GIVES_WAY_UNANSWERED = 5,
	GIVES_WAY_ANSWERED = 2, /* a datagram */
	GIVES_WAY_STREAM = 60,  /* of datagrams */
	GIVES_WAY_NEVER = CT_TIMEOUT_ESTABLISHED + 1,
};

/* Who sends a packet. */
enum side { SIDE_POD, SIDE_OUTSIDE };

/* Is done to a packet: none of the reasons. */
enum { NOTHING = -1 };

/* The same connection has the same seed. */
static __always_inline __u32 seed_of(const struct ct_key *ends)
{
	__u32 seed = (__u32)ends->source_port << 16 | ends->destination_port;

	seed = lb_mix(seed ^ ends->source.word[3]) ^ ends->source.word[2] ^ ends->source.word[1] ^ ends->source.word[0];
	return lb_mix(seed ^ ends->destination.word[3]) ^ ends->destination.word[2] ^ ends->destination.word[1];
}

/* The backend of this connection where that is there, by its id and its address, since ids are given again; NULL where it is
 * gone, or its cluster evicted. */
static __always_inline struct lb_backend *backend_of(const struct ct_entry *forward)
{
	struct lb_backend *backend = bpf_map_lookup_elem(MAP(lb_backends), &forward->backend_id);

	if (!backend || backend->port != forward->destination_port ||
	    !is_same_address(&backend->address, &forward->destination) || lb_is_evicted(backend->cluster_id))
		return NULL;
	return backend;
}

/* Whether neither direction of a connection lives: who only sends, or only listens, is there, too. `pair` may be NULL. */
static __always_inline bool has_expired(const struct ct_entry *entry, const struct ct_entry *pair, __u32 now)
{
	return !ct_is_live(entry->expires, now) && (!pair || !ct_is_live(pair->expires, now));
}

/* Whether what has the ends of an answer is none, since what it would answer has expired: of another connection, with nobody's
 * service between. (In the middle of one of TCP the two are not to be told apart.) */
static __always_inline bool is_beyond(const struct ct_entry *reply, struct packet *packet, __u32 now)
{
	if (packet->ends.protocol == IPPROTO_TCP && (packet->tcp & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK))
		return false;
	return !ct_is_live(reply->expires, now) && has_expired(reply, ct_own_pair(reply, &packet->ends, packet), now);
}

/* Whether this packet begins a connection although there is an entry for it. An opening packet, or a reset before it, may be
 * forged: what is established goes on, and its backend knows what to answer to a client that has in fact begun anew. Only
 * where that has refused it, and is given to nobody new, another one is chosen. A pod takes the entry that somebody outside
 * has made in its name. */
static __always_inline bool begins_anew(const struct ct_entry *entry, struct packet *packet, enum side side, __u32 now)
{
	struct lb_backend *backend;

	if (entry->flags & CT_REPLY)
		return is_beyond(entry, packet, now);
	if (side == SIDE_POD && ct_is_from_outside(entry))
		return packet->ends.protocol != IPPROTO_TCP || is_syn(packet);
	if (packet->ends.protocol != IPPROTO_TCP)
		return has_expired(entry, ct_own_pair(entry, &packet->ends, packet), now);
	if (!is_syn(packet))
		return false;
	if (!ct_is_live(entry->expires, now) || ct_is_closed(entry->flags))
		return true;
	if (!entry->service_id) /* it has no backend that could go */
		return false;
	backend = backend_of(entry);
	if (!backend || backend->state == BACKEND_ACTIVE)
		return !backend;
	return !(entry->flags & CT_ESTABLISHED) || entry->flags & CT_REFUSED;
}

/* Whether what has the ends of a new connection's replies may be taken over: what has expired; or what has ended, where the
 * client itself has chosen its port. */
static __always_inline bool is_over(const struct ct_entry *entry, const struct ct_entry *pair, bool is_own_port, __u32 now)
{
	return has_expired(entry, pair, now) || (is_own_port && ct_is_closed(entry->flags));
}

/* When the entry of replies, as long as it lives, gives way to another connection, once neither end has sent anything for so
 * long. A flood of openings leaves such as were never answered; many that ask by one datagram each leave such as have their
 * answer. */
static __always_inline __s32 gives_way_after(const struct ct_entry *entry, __u8 protocol)
{
	if (entry->flags & CT_ESTABLISHED)
		return protocol == IPPROTO_UDP ? GIVES_WAY_STREAM : GIVES_WAY_NEVER;
	return protocol == IPPROTO_UDP && entry->packets ? GIVES_WAY_ANSWERED : GIVES_WAY_UNANSWERED;
}

static __always_inline bool gives_way(const struct ct_entry *entry, const struct ct_entry *pair, __u8 protocol, __u32 now)
{
	__s32 after = gives_way_after(entry, protocol);

	return ct_idle(entry, protocol, now) > after && (!pair || ct_idle(pair, protocol, now) > after);
}

/* Whether what has the ends of a new connection's replies may give them to it; `is_short`: where ports are. */
static __always_inline bool may_yield(const struct ct_entry *entry, const struct ct_entry *pair, bool is_own_port,
				      bool is_short, __u8 protocol, __u32 now)
{
	return is_over(entry, pair, is_own_port, now) || (is_short && gives_way(entry, pair, protocol, now));
}

/* Of all CPUs that have seen that an entry may be taken over one does: to the others it is in use then. BCC compares no less
 * than 64 bits, of which the other half is always the same. */
static __always_inline bool take_over(struct ct_entry *entry, __u32 seen, __u8 protocol, __u32 now)
{
	union {
		__u32 word[2];
		__u64 all;
	} before = { { entry->backend_id, seen } }, after = { { entry->backend_id, now + ct_timeout(protocol, entry->flags) } };

	return __sync_val_compare_and_swap((__u64 *)&entry->backend_id, before.all, after.all) == before.all;
}
_Static_assert(__builtin_offsetof(struct ct_entry, backend_id) == 40 && __builtin_offsetof(struct ct_entry, expires) == 44,
	       "take_over() compares both");

/* Whether packets with these ends go to no service. */
static __always_inline bool speaks_directly(const struct ct_key *ends, __u32 now)
{
	struct ct_direct *direct = bpf_map_lookup_elem(MAP(ct_direct), ends);

	return direct && ct_is_live(direct->expires, now);
}

/* The packets with these ends are for a socket of this node. */
static __always_inline bool has_socket(struct __sk_buff *skb, const struct ct_key *ends)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = sizeof(tuple.ipv6);
	struct bpf_sock *found;

	if (is_ipv4(&ends->source)) {
		size = sizeof(tuple.ipv4);
		tuple.ipv4.saddr = ends->source.word[3];
		tuple.ipv4.daddr = ends->destination.word[3];
		tuple.ipv4.sport = ends->source_port;
		tuple.ipv4.dport = ends->destination_port;
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &ends->source, 2 * sizeof(struct address));
		tuple.ipv6.sport = ends->source_port;
		tuple.ipv6.dport = ends->destination_port;
	}
	if (ends->protocol == IPPROTO_TCP)
		found = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		found = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (found)
		bpf_sk_release(found);
	return found;
}

/* Whether replies that came by the port that is to be lent would not be this connection's alone: a socket of this node has it,
 * or a pod speaks by it to the backend itself. (A backend never calls anybody from the port that it answers at.) */
SUBPROGRAM int is_port_used(struct __sk_buff *skb)
{
	struct ct_scratch *space = scratch();

	return !space || has_socket(skb, &space->new.reply_key) || speaks_directly(&space->new.reply_key, ct_now());
}

/* The port of this node that a random number stands for, by the network's order. */
static __always_inline __be16 port_of(const struct node_config *node, __u32 random)
{
	__u64 count = (__u64)node->port_last - node->port_first + 1;

	return bpf_htons(node->port_first + (random * count >> 32));
}

/* Gives the replies of the connection in scratch a random port of ours. False where none is lent. */
SUBPROGRAM bool draw_port(void)
{
	struct node_config *node = this_node();
	struct ct_scratch *space = scratch();

	if (!node || !space || !node->port_first)
		return false;
	space->new.reply_key.destination_port = port_of(node, bpf_get_prandom_u32());
	return true;
}

/* Where searches for a port towards the backend of these replies are remembered. */
static __always_inline struct ct_searched *searched_for(const struct ct_key *key)
{
	__u32 place = lb_mix(key->source.word[3] ^ lb_mix(key->source.word[2] ^ key->source_port)) % SEARCHES_REMEMBERED;

	return bpf_map_lookup_elem(MAP(ct_searched), &place);
}

/* Whether that is what this CPU has searched for in vain within this tick. */
static __always_inline bool is_searched(const struct ct_searched *searched, const struct ct_key *key, __u32 now)
{
	return searched->tick == now && searched->port == key->source_port && searched->protocol == key->protocol &&
	       is_same_address(&searched->backend, &key->source);
}

/* Gives the replies of the connection in scratch a port of ours that nobody has with its backend. That is looked for at random,
 * too, by a sequence of numbers (that of Numerical Recipes): from one to the next beside it those lent would stand in rows, and
 * the others be far to find. False where none is found. Where that is so SEARCHES_IN_VAIN times there is no other search in that tick:
 * who has all ports taken would else have each opening cost as much. */
SUBPROGRAM bool find_port(void)
{
	struct node_config *node = this_node();
	struct ct_scratch *space = scratch();
	__u32 random = bpf_get_prandom_u32(), now = ct_now();
	struct ct_searched *searched;
	struct ct_key *key;
	__u8 times = 0;

	if (!node || !space || !node->port_first)
		return false;
	key = &space->new.reply_key;
	searched = searched_for(key);
	if (!searched)
		return false;
	if (is_searched(searched, key, now))
		times = searched->times;
	if (times >= SEARCHES_IN_VAIN)
		return false;
	for (__u32 left = 0; left < PORTS_SEARCHED; left++) {
		key->destination_port = port_of(node, random);
		if (!bpf_map_lookup_elem(MAP(ct), key))
			return true;
		random = random * 1664525 + 1013904223;
	}
	*searched = (struct ct_searched){ key->source, now, key->source_port, key->protocol, times + 1 };
	return false;
}

/* Finds ends for the replies that are nobody else's, and takes them. 0, or why not. */
static __always_inline enum reason claim(struct __sk_buff *skb, struct ct_new *new, struct packet *packet, bool is_own_port,
					 __u32 now)
{
	for (__u32 drawn = 0; drawn < PORTS_DRAWN; drawn++) {
		bool is_short = drawn > PORTS_DRAWN_MILDLY, is_mine;
		struct ct_entry *other, *pair;
		__u32 seen;

		if (!is_own_port) {
			if (packet->ends.protocol == IPPROTO_SCTP)
				break;
			if (!(drawn == PORTS_DRAWN_MILDLY ? find_port() : draw_port()) || is_port_used(skb))
				continue;
			new->forward.source_port = new->reply_key.destination_port;
			new->forward.flags |= CT_LENT;
			new->reply.flags |= CT_LENT;
		}
		if (!bpf_map_update_elem(MAP(ct), &new->reply_key, &new->reply, BPF_NOEXIST))
			return 0;
		other = bpf_map_lookup_elem(MAP(ct), &new->reply_key);
		if (!other)
			return REASON_DROP_CT_FULL;
		seen = other->expires;
		pair = ct_own_pair(other, &new->reply_key, packet);
		is_mine = ct_is_pair(other, &packet->ends);
		if (is_mine || (may_yield(other, pair, is_own_port, is_short, packet->ends.protocol, now) &&
				take_over(other, seen, packet->ends.protocol, now))) {
			if (pair && !is_mine)
				bpf_map_delete_elem(MAP(ct), &packet->pair);
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

/* Once, since somebody may write it. */
static __always_inline void read_ends(const struct ct_entry *entry, struct ends *to)
{
	to->source = entry->source;
	to->destination = entry->destination;
	to->source_port = entry->source_port;
	to->destination_port = entry->destination_port;
}

/* Whether the packet goes this way past the kernel, so that who sends it is a router to it, and may go no further. */
static __always_inline bool is_spent(const struct packet *packet, __u8 way)
{
	return packet->hops <= 1 && (way == WAY_PEER || way == WAY_NEIGH);
}

/* Gives the packet the ends that the entry says, and where it goes on from here (`routes`) a hop less where that is past the
 * kernel. A reason why not, or 0. */
static __always_inline enum reason translate(struct __sk_buff *skb, struct ct_scratch *space, const struct ct_entry *entry,
					     struct passage *passage, bool routes)
{
	struct packet *packet = &space->packet;
	__u8 hops = packet->hops;

	read_ends(entry, &space->to);
	*passage = (struct passage){ entry->way_device, entry->mtu, entry->way };
	if (is_too_large(of_skb(skb), packet, passage->mtu))
		return REASON_DROP_TOO_LARGE;
	if (routes && is_spent(packet, passage->way))
		return REASON_DROP_HOPS;
	if (routes && (passage->way == WAY_PEER || passage->way == WAY_NEIGH))
		hops--;
	if (nat(of_skb(skb), packet, &space->to, hops))
		return REASON_DROP_BROKEN;
	count(entry->flags & CT_REPLY ? REASON_NAT_REPLY : REASON_NAT_FORWARD);
	if (packet->flags & PACKET_FRAGMENTED)
		remember_fragment(packet);
	return 0;
}

/* Replies that go on by the kernel's way are translated where they leave this node's hands, and nowhere else: what had been
 * translated on its way in would be looked up there once more, by ends that may be another connection's. */
static __always_inline bool is_left_to_egress(const struct ct_entry *entry, const struct packet *packet)
{
	if (entry->flags & CT_AT_EGRESS)
		return true;
	return (entry->flags & (CT_REPLY | CT_OUTSIDE)) == CT_REPLY && goes_by_stack(packet, entry->way);
}

/* Comes from outside with the ends of what a pod of this node sends, or of what comes by the tunnel alone: it is not of that
 * connection. (The tunnel, which may be made again, is known by having no link layer.) */
static __always_inline bool is_forged(const struct ct_entry *entry, const struct packet *packet, enum side side)
{
	if (side != SIDE_OUTSIDE)
		return false;
	if (entry->flags & CT_REPLY)
		return entry->flags & CT_OUTSIDE && entry->from_device && packet->network;
	return !(entry->flags & CT_OUTSIDE);
}

/* The ICMP error in scratch, of whoever. Those about packets that are none of ours are left alone. */
SUBPROGRAM int translate_error(struct __sk_buff *skb, __u32 is_egress, __u32 side)
{
	struct ct_scratch *space = scratch();
	struct passage passage;
	struct ct_entry *entry;

	if (!space || !read_quote(skb, &space->packet, &space->quote))
		return NEXT;
	entry = bpf_map_lookup_elem(MAP(ct), &space->quote.back);
	if (!entry || (is_egress ? !(entry->flags & CT_REPLY) : is_left_to_egress(entry, &space->packet)) ||
	    is_forged(entry, &space->packet, side))
		return NEXT;
	read_ends(entry, &space->to);
	passage = (struct passage){ entry->way_device, 0, entry->way };
	if (nat_error(skb, &space->packet, &space->quote, &space->to))
		return dropped(REASON_DROP_BROKEN);
	count(REASON_NAT_ERROR);
	return is_egress ? NEXT : send(skb, &space->packet, &passage);
}

static __always_inline void keep_direct(struct __sk_buff *skb, const struct packet *packet, __u32 now)
{
	struct ct_direct direct = { now + ct_timeout(packet->ends.protocol, 0), skb->ifindex, 0, 0 };

	bpf_map_update_elem(MAP(ct_direct), &packet->ends, &direct, BPF_ANY);
}

/* What a pod sends to no service is kept in mind, so that what it sends to one is not taken for the same connection. True
 * where that is all; false where it must be told apart from a service's that lives. */
static __always_inline bool note_direct(struct __sk_buff *skb, struct ct_new *new, struct packet *packet, __u32 now)
{
	struct ct_entry *reply;

	new->reply_key = packet->ends;
	new->reply_key.source = packet->ends.destination;
	new->reply_key.destination = packet->ends.source;
	new->reply_key.source_port = packet->ends.destination_port;
	new->reply_key.destination_port = packet->ends.source_port;
	if (speaks_directly(&new->reply_key, now))
		return true; /* an answer */
	reply = bpf_map_lookup_elem(MAP(ct), &new->reply_key);
	if (reply && !is_over(reply, ct_own_pair(reply, &new->reply_key, packet), true, now))
		return false;
	if (reply)
		ct_delete(reply, &new->reply_key, packet);
	keep_direct(skb, packet, now);
	return true;
}

/* A pod calls. What would come back to itself is sent as if this node had. */
static __always_inline enum reason plan_for_pod(const struct node_config *node, struct ct_new *new, bool is_ipv6)
{
	struct ct_entry *forward = &new->forward, *reply = &new->reply;

	choose_pod_way(node, forward);
	choose_pod_way(node, reply);
	if (!is_same_address(&forward->source, &forward->destination))
		return 0;
	forward->source = is_ipv6 ? node->node6 : node->node4;
	forward->way = reply->way = WAY_BACK;
	return is_somebody(&forward->source) ? 0 : REASON_DROP_NO_ADDRESS;
}

/* Whether the chosen backend is on this node: this node itself, a pod of ours, or one that others gave its device, of which
 * only the service knows. */
static __always_inline bool is_here(const struct ct_new *new, const struct address *own)
{
	return new->chosen.flags & SERVICE_KEEP_SOURCE || is_same_address(&new->chosen.address, own) ||
	       bpf_map_lookup_elem(MAP(pod_devices), &new->chosen.address);
}

/* Somebody outside calls. A backend here sees who; one elsewhere sees this node, which its replies come back to. */
static __always_inline enum reason plan_for_outside(struct __sk_buff *skb, const struct node_config *node,
						    struct ct_new *new, bool is_ipv6)
{
	struct ct_entry *forward = &new->forward, *reply = &new->reply;
	const struct address *own = is_ipv6 ? &node->node6 : &node->node4;
	bool has_route = !choose_route(of_skb(skb), new, reply, is_ipv6);
	long there = BPF_FIB_LKUP_RET_NOT_FWDED;

	forward->flags |= CT_OUTSIDE;
	forward->from_device = 0;
	reply->flags |= CT_OUTSIDE;
	if (!is_here(new, own))
		there = choose_route(of_skb(skb), new, forward, is_ipv6);
	if (there == BPF_FIB_LKUP_RET_NOT_FWDED) { /* the node may have more addresses than `own`; else the kernel says so */
		choose_pod_way(node, forward);
		if (forward->way == WAY_PEER && has_route)
			return 0;
		forward->way = reply->way = WAY_STACK; /* the kernel sees both directions, or none */
		reply->mtu = 0;
		reply->flags |= CT_AT_EGRESS;
		return 0;
	}
	if (there)
		return REASON_DROP_NO_ROUTE;
	forward->source = *own;
	if (node->tunnel_device && forward->way_device == node->tunnel_device) {
		forward->source = is_ipv6 ? node->tunnel6 : node->tunnel4;
		reply->from_device = node->tunnel_device;
	}
	return is_somebody(&forward->source) ? 0 : REASON_DROP_NO_ADDRESS;
}

/* The two entries of a connection, as far as they are known before a port is claimed. 0, or why there can be none. */
static __always_inline enum reason plan(struct __sk_buff *skb, const struct node_config *node, struct ct_new *new,
					const struct packet *packet, enum side side, __u32 now)
{
	const struct ct_key *ends = &packet->ends;
	struct ct_entry *forward = &new->forward, *reply = &new->reply;
	bool is_ipv6 = packet->flags & PACKET_IPV6;
	enum reason reason;

	__builtin_memset(forward, 0, sizeof(*forward));
	__builtin_memset(reply, 0, sizeof(*reply));
	forward->source = ends->source;
	forward->destination = new->chosen.address;
	forward->source_port = ends->source_port;
	forward->destination_port = new->chosen.port;
	forward->service_id = reply->service_id = new->chosen.service_id;
	forward->backend_id = reply->backend_id = new->chosen.backend_id;
	forward->from_device = skb->ifindex;
	forward->packets = 1;
	forward->bytes = packet->length;
	forward->expires = reply->expires = now + ct_timeout(ends->protocol, 0);
	reply->source = ends->destination;
	reply->destination = ends->source;
	reply->source_port = ends->destination_port;
	reply->destination_port = ends->source_port;
	reply->flags = CT_REPLY;
	if (side == SIDE_POD)
		reason = plan_for_pod(node, new, is_ipv6);
	else
		reason = plan_for_outside(skb, node, new, is_ipv6);
	ct_pair_key(forward, ends->protocol, &new->reply_key);
	return reason;
}

/* Whether the backend may see the client's own port: not where it stands beside those of this node's sockets, or the two
 * speak to each other by no service. (SCTP's cannot be changed.) */
static __always_inline bool may_keep_port(const struct ct_new *new, struct packet *packet, __u32 now)
{
	const struct ct_entry *forward = &new->forward;

	if (!forward->service_id)
		return false;
	if (!is_same_address(&forward->source, &packet->ends.source) && packet->ends.protocol != IPPROTO_SCTP)
		return false;
	packet->pair = packet->ends;
	packet->pair.source = forward->source;
	packet->pair.destination = forward->destination;
	packet->pair.destination_port = forward->destination_port;
	return !speaks_directly(&new->reply_key, now) && !speaks_directly(&packet->pair, now);
}

/* Whether the kernel takes who sends this from outside for forged: in this node's own name, in nobody's, or in that of whom it
 * is sent to. It is asked before anything begins or is answered. */
static __always_inline bool is_martian(const struct node_config *node, const struct ct_key *ends)
{
	const struct address *source = &ends->source;

	return is_nobodys(source) || is_same_address(source, &ends->destination) || is_same_address(source, &node->node4) ||
	       is_same_address(source, &node->node6) || is_same_address(source, &node->tunnel4) ||
	       is_same_address(source, &node->tunnel6);
}

/* What may not be done to a packet that begins a connection, or is of none. */
static __always_inline enum reason begin(struct __sk_buff *skb, struct ct_scratch *space, const struct node_config *node,
					 const struct lb_service *service, enum side side)
{
	struct packet *packet = &space->packet;
	const struct ct_key *ends = &packet->ends;
	struct lb_chosen *chosen = &space->new.chosen;
	__u32 now = ct_now();
	enum reason reason;

	if (service) {
		if (lb_choose(&space->new.service, service, &ends->source, seed_of(ends), chosen) != TRANSLATED)
			return REASON_DROP_NO_BACKEND;
		if (ends->protocol == IPPROTO_SCTP && chosen->port != ends->destination_port)
			return REASON_DROP_SCTP_PORT;
	} else {
		__builtin_memset(chosen, 0, sizeof(*chosen));
		chosen->address = ends->destination;
		chosen->port = ends->destination_port;
	}
	reason = plan(skb, node, &space->new, packet, side, now);
	if (!reason && is_spent(packet, space->new.forward.way))
		reason = REASON_DROP_HOPS;
	if (!reason)
		reason = claim(skb, &space->new, packet, may_keep_port(&space->new, packet, now), now);
	if (reason)
		return reason;
	if (bpf_map_update_elem(MAP(ct), ends, &space->new.forward, BPF_ANY))
		return REASON_DROP_CT_FULL;
	tell_new(skb, packet, &space->new.forward);
	return 0;
}

/* The packet in scratch is of no connection that is known: 0 where it is of one now, whose entry is in scratch, too, else why
 * not; NOTHING where it is left as it is. */
SUBPROGRAM int open_connection(struct __sk_buff *skb, __u32 side)
{
	struct node_config *node = this_node();
	struct ct_scratch *space = scratch();
	struct lb_service *service;
	const struct ct_key *ends;

	if (!node || !space)
		return NOTHING;
	ends = &space->packet.ends;
	space->new.service.address = ends->destination;
	space->new.service.port = ends->destination_port;
	space->new.service.protocol = ends->protocol;
	space->new.service.scope = SCOPE_ANY;
	service = lb_find(&space->new.service, side == SIDE_OUTSIDE);
	if (side == SIDE_OUTSIDE && (!service || is_martian(node, ends)))
		return NOTHING;
	if (service && side == SIDE_OUTSIDE && !lb_may_ask(&space->new.service, service, &ends->source))
		return REASON_DROP_SOURCE_RANGE;
	if (ends->protocol == IPPROTO_TCP && !is_syn(&space->packet)) {
		if (service)
			return REASON_DROP_NO_CONNECTION;
		if (!(space->packet.tcp & (TCP_FIN | TCP_RST))) /* its answers: who called may call a service, too */
			keep_direct(skb, &space->packet, ct_now());
		return NOTHING;
	}
	if (!service && note_direct(skb, &space->new, &space->packet, ct_now()))
		return NOTHING;
	return begin(skb, space, node, service, side);
}

/* The packet in scratch becomes its answer, where the sender may have one. */
SUBPROGRAM int answer_refused(struct __sk_buff *skb, __u32 reason)
{
	struct ct_scratch *space = scratch();

	if (!space || !may_be_answered(&space->packet, reason))
		return dropped(reason);
	report_packet(skb, reason, EVENT_DROP);
	if (become_answer(skb, &space->packet, reason, space->new.forward.mtu))
		return dropped(REASON_DROP_BROKEN);
	return send_back(skb, &space->packet);
}

/* Looked at about once a second: whether the backend is still there, of which a direct connection that was told apart has
 * none; and the entry of its replies, which the kernel may have taken where the map is full: without it nothing comes back,
 * and who is lent the same port would be spoken for. */
static __always_inline bool is_lost(const struct ct_entry *entry, struct packet *packet)
{
	if (entry->flags & CT_REPLY)
		return false;
	return (entry->service_id && !backend_of(entry)) || !ct_own_pair(entry, &packet->ends, packet);
}

/* Whether nobody has shown yet that it is a client outside who opened this connection, in as many packets as that takes. */
static __always_inline bool is_unproven(const struct ct_entry *entry, const struct packet *packet)
{
	return packet->ends.protocol == IPPROTO_TCP && (entry->flags & (CT_OUTSIDE | CT_ESTABLISHED)) == CT_OUTSIDE &&
	       entry->packets < PACKETS_UNPROVEN;
}

/* Whether the kernel is to forget that this packet had its entry looked up. Not before the backend's answer is noted: what
 * another CPU notes while entries are made anew may be lost, and the client's answer would prove nothing. */
static __always_inline bool is_to_be_set_aside(const struct ct_entry *entry, const struct packet *packet)
{
	return is_unproven(entry, packet) && (entry->flags & CT_REPLY || entry->from_device);
}

/* Makes both entries of the packet in scratch anew, as they are: as if nobody had looked them up. Where the map is full the
 * kernel takes such first, and keeps what somebody has, up to about half of the map: what is established outlasts a flood of openings
 * in forged names, which backends answer. Each is made whatever became of the other: another CPU that does the same has then
 * made, or found, what this one has deleted. Where the other direction knows of a proof that this one was not told, since it
 * was being made anew just then, it hears of it now. No pointer to an entry holds afterwards. */
SUBPROGRAM int set_aside(void)
{
	struct ct_scratch *space = scratch();
	struct ct_entry *entry, *pair;
	struct packet *packet;

	if (!space)
		return 0;
	packet = &space->packet;
	entry = bpf_map_lookup_elem(MAP(ct), &packet->ends);
	pair = entry ? ct_own_pair(entry, &packet->ends, packet) : NULL;
	if (!pair)
		return 0;
	if (pair->flags & CT_ESTABLISHED) {
		entry->flags |= CT_ESTABLISHED;
		return 0;
	}
	space->new.forward = *entry;
	space->new.reply = *pair;
	bpf_map_delete_elem(MAP(ct), &packet->ends);
	bpf_map_delete_elem(MAP(ct), &packet->pair);
	bpf_map_update_elem(MAP(ct), &packet->ends, &space->new.forward, BPF_NOEXIST);
	bpf_map_update_elem(MAP(ct), &packet->pair, &space->new.reply, BPF_NOEXIST);
	return 0;
}

/* A packet that has ports, and its entry. */
static __always_inline int serve(struct __sk_buff *skb, struct ct_scratch *space, struct ct_entry *entry, enum side side)
{
	struct packet *packet = &space->packet;
	bool lost = false, anew = !entry;
	struct passage passage = {};
	__u32 now = ct_now();
	int why = 0;

	if (entry && is_forged(entry, packet, side))
		return NEXT;
	if (entry)
		anew = begins_anew(entry, packet, side, now);
	if (entry && !anew && is_left_to_egress(entry, packet))
		return NEXT;
	if (entry && !anew && ct_touch(entry, packet, now)) {
		lost = is_lost(entry, packet);
		renew_way(of_skb(skb), &space->new, packet, entry);
	}
	if (entry && (anew || lost))
		ct_delete(entry, &packet->ends, packet);
	if (lost && packet->ends.protocol == IPPROTO_TCP && !is_syn(packet)) {
		why = REASON_DROP_NO_CONNECTION;
	} else if (anew || lost) {
		why = open_connection(skb, side);
		entry = &space->new.forward;
	}
	if (why == NOTHING)
		return NEXT;
	if (!why)
		why = translate(skb, space, entry, &passage, true);
	if (!why && entry != &space->new.forward && is_to_be_set_aside(entry, packet))
		set_aside();
	if (!why)
		return send(skb, packet, &passage);
	space->new.forward.mtu = passage.mtu;
	return answer_refused(skb, why);
}

/* Replies that come by the kernel's way get back the service's address where they leave this node's hands: those that say so
 * (`flag`), or not. */
static __always_inline int answer(struct __sk_buff *skb, __u16 network, __u16 flag)
{
	struct ct_scratch *space = scratch();
	struct passage passage;
	struct ct_entry *entry;
	enum content content;
	enum reason why;

	if (!space)
		return NEXT;
	if (skb->tc_index == EGRESS_DONE) {
		skb->tc_index = 0;
		return NEXT;
	}
	content = parse(of_skb(skb), network, &space->packet);
	if (content == CONTENT_ERROR)
		return translate_error(skb, true, SIDE_POD);
	if (content != CONTENT_FLOW)
		return NEXT;
	entry = bpf_map_lookup_elem(MAP(ct), &space->packet.ends);
	if (!entry || (entry->flags & (CT_REPLY | CT_AT_EGRESS)) != (CT_REPLY | flag))
		return NEXT;
	ct_touch(entry, &space->packet, ct_now());
	why = translate(skb, space, entry, &passage, false);
	if (why)
		return dropped(why);
	if (is_to_be_set_aside(entry, &space->packet))
		set_aside();
	return NEXT;
}

#endif
