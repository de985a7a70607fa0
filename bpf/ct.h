/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connection tracking: what the map `ct` says of a packet, and how long it holds. Sequence numbers are not tracked, so that
 * one forged packet changes little: a reset or an end only shortens what is left, and traffic that goes on renews it. */
#ifndef CLUSTERMESH_CT_H
#define CLUSTERMESH_CT_H

#include "packet.h"

/* In ticks. */
enum ct_timeout {
	CT_TIMEOUT_OPENING = 60,
	CT_TIMEOUT_ESTABLISHED = 7500,
	CT_TIMEOUT_ENDING = 120, /* one direction has ended */
	CT_TIMEOUT_CLOSED = 2,
	CT_TIMEOUT_RESET = 60,
	CT_TIMEOUT_ONE_DATAGRAM = 30,
	CT_TIMEOUT_DATAGRAMS = 180,
	CT_TIMEOUT_SCTP = 600,
};

/* In ticks: datagrams that go on for so long are more than a question and its answer. */
enum { CT_STREAM_AFTER = 2 };

/* How much of what a backend sends a client may have acknowledged with the first packet that is seen of it. */
enum { CT_ACKNOWLEDGED = 65536 };

static __always_inline bool ct_is_live(__u32 expires, __u32 now)
{
	return (__s32)(expires - now) > 0;
}

/* Both directions have ended. */
static __always_inline bool ct_is_closed(__u16 flags)
{
	return (flags & (CT_FIN | CT_FIN_OTHER)) == (CT_FIN | CT_FIN_OTHER);
}

static __always_inline __u32 ct_timeout(__u8 protocol, __u16 flags)
{
	if (protocol == IPPROTO_SCTP)
		return CT_TIMEOUT_SCTP;
	if (protocol != IPPROTO_TCP)
		return flags & CT_ESTABLISHED ? CT_TIMEOUT_DATAGRAMS : CT_TIMEOUT_ONE_DATAGRAM;
	if (ct_is_closed(flags))
		return CT_TIMEOUT_CLOSED;
	if (flags & CT_RESET)
		return flags & CT_ESTABLISHED ? CT_TIMEOUT_RESET : CT_TIMEOUT_CLOSED;
	if (flags & (CT_FIN | CT_FIN_OTHER))
		return CT_TIMEOUT_ENDING;
	return flags & CT_ESTABLISHED ? CT_TIMEOUT_ESTABLISHED : CT_TIMEOUT_OPENING;
}

/* Where the pair of this entry is. */
static __always_inline void ct_pair_key(const struct ct_entry *entry, __u8 protocol, struct ct_key *key)
{
	key->source = entry->destination;
	key->destination = entry->source;
	key->source_port = entry->destination_port;
	key->destination_port = entry->source_port;
	key->protocol = protocol;
	__builtin_memset(key->pad, 0, sizeof(key->pad));
}

/* The entry in its place; `packet` has room for the key, and the protocol. */
static __always_inline struct ct_entry *ct_pair(const struct ct_entry *entry, struct packet *packet)
{
	ct_pair_key(entry, packet->ends.protocol, &packet->pair);
	return bpf_map_lookup_elem(MAP(ct), &packet->pair);
}

/* Whether `entry` is the pair of that with these ends. */
static __always_inline bool ct_is_pair(const struct ct_entry *entry, const struct ct_key *ends)
{
	return entry->source_port == ends->destination_port && entry->destination_port == ends->source_port &&
	       is_same_address(&entry->source, &ends->destination) && is_same_address(&entry->destination, &ends->source);
}

/* The pair of the entry that has these ends; NULL where it is gone, or another connection's by now. */
static __always_inline struct ct_entry *ct_own_pair(const struct ct_entry *entry, const struct ct_key *ends,
						    struct packet *packet)
{
	struct ct_entry *pair = ct_pair(entry, packet);

	return pair && ct_is_pair(pair, ends) ? pair : NULL;
}

/* The other direction hears whether this one has ended, and whether a reset was the last that was seen. */
static __always_inline void ct_tell_pair(const struct ct_entry *entry, struct packet *packet, __u16 flags, __u32 now)
{
	struct ct_entry *pair = ct_own_pair(entry, &packet->ends, packet);

	if (!pair)
		return;
	flags |= pair->flags & ~(CT_RESET | CT_REFUSED | CT_FIN_OTHER);
	pair->flags = flags;
	pair->expires = now + ct_timeout(packet->ends.protocol, flags);
}

/* Whether a packet of TCP carries anything. */
static __always_inline bool has_data(const struct packet *packet)
{
	return packet->length > packet->transport - packet->network + packet->head;
}

/* What is known of a direction after this packet of it. A reset that others follow was none, nor an end that more follows. */
static __always_inline __u16 ct_flags_after(__u16 flags, const struct packet *packet)
{
	if (packet->ends.protocol != IPPROTO_TCP)
		return flags | CT_ESTABLISHED;
	if (!packet->tcp) /* a later fragment */
		return flags;
	if (packet->tcp & TCP_RST)
		return flags | CT_RESET | (flags & CT_REPLY ? CT_REFUSED : 0);
	flags &= ~(CT_RESET | CT_REFUSED);
	if (packet->tcp & TCP_FIN)
		return flags | CT_FIN;
	if (flags & CT_FIN && has_data(packet))
		flags &= ~CT_FIN;
	return packet->tcp & TCP_SYN ? flags : flags | CT_ESTABLISHED;
}

/* In ticks: for how long nothing of it was seen. */
static __always_inline __s32 ct_idle(const struct ct_entry *entry, __u8 protocol, __u32 now)
{
	return now + ct_timeout(protocol, entry->flags) - entry->expires;
}

/* Whether this datagram is one of a question and its answer, as far as is known: most flows are no more, and have no need to
 * be known, and to keep a lent port, for longer. */
static __always_inline bool ct_is_exchange(const struct ct_entry *entry, __u8 protocol, __u32 now)
{
	return protocol == IPPROTO_UDP && !(entry->flags & CT_ESTABLISHED) &&
	       (!entry->packets || ct_idle(entry, protocol, now) < CT_STREAM_AFTER);
}

/* Whether these are the packets of a client outside. */
static __always_inline bool ct_is_from_outside(const struct ct_entry *entry)
{
	return (entry->flags & (CT_REPLY | CT_OUTSIDE)) == CT_OUTSIDE;
}

/* Whether a packet of a connection from outside shows that the client has had the backend's answer: it acknowledges that. Who
 * forged its source cannot know what to acknowledge; what is said in the backend's name shows nothing of the client. */
static __always_inline bool ct_is_proof(const struct ct_entry *entry, const struct packet *packet)
{
	return !(entry->flags & CT_REPLY) && entry->from_device && !(packet->flags & PACKET_FRAGMENTED) &&
	       bpf_ntohl(packet->number) - entry->from_device < CT_ACKNOWLEDGED;
}

/* Keeps what a client outside is to acknowledge of the backend's answer. */
static __always_inline void ct_note_answer(const struct ct_entry *entry, struct packet *packet)
{
	struct ct_entry *pair = ct_own_pair(entry, &packet->ends, packet);

	if (pair && ct_is_from_outside(pair))
		pair->from_device = bpf_ntohl(packet->number) + 1;
}

/* What a packet of this entry does to it. A connection is established once the client has answered the backend's answer: what
 * a flood of forged openings leaves goes as soon as those. True about once a second, and in an exchange, since another may
 * come from the port of the one before: the time to look whether what the entry leads to is still there. */
static __always_inline bool ct_touch(struct ct_entry *entry, struct packet *packet, __u32 now)
{
	__u8 protocol = packet->ends.protocol;
	bool is_exchange = ct_is_exchange(entry, protocol, now), is_later = ct_idle(entry, protocol, now);
	__u16 before = entry->flags, flags = is_exchange ? before : ct_flags_after(before, packet);

	if (protocol == IPPROTO_TCP && before & CT_OUTSIDE) {
		if ((packet->tcp & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) && before & CT_REPLY)
			ct_note_answer(entry, packet);
		if (flags & ~before & CT_ESTABLISHED && !ct_is_proof(entry, packet))
			flags &= ~CT_ESTABLISHED;
	}
	entry->packets++;
	entry->bytes += packet->length;
	if (is_exchange && entry->packets > 1)
		return true; /* it began, or was first answered, when it says */
	if (!is_later && flags == before)
		return false;
	entry->expires = now + ct_timeout(protocol, flags);
	entry->flags = flags;
	if (flags != before && protocol == IPPROTO_TCP)
		ct_tell_pair(entry, packet,
			     (flags & CT_FIN ? CT_FIN_OTHER : 0) | (flags & (CT_RESET | CT_REFUSED | CT_ESTABLISHED)), now);
	else
		ct_pair(entry, packet); /* is in use, too: where the map is full the kernel takes what nobody looked up */
	return is_later;
}

/* Whether a packet goes on to no service, as those before it did. */
static __always_inline bool ct_goes_on_directly(struct ct_direct *direct, const struct packet *packet, __u32 now)
{
	bool is_live = ct_is_live(direct->expires, now);
	__u16 flags = ct_flags_after(direct->flags, packet);
	__u32 expires = now + ct_timeout(packet->ends.protocol, flags);

	if (packet->ends.protocol != IPPROTO_TCP && !is_live)
		return false;
	if (expires != direct->expires || flags != direct->flags) {
		direct->expires = expires;
		direct->flags = flags;
	}
	return true;
}

/* Deletes the entry of `ends` and its pair. */
static __always_inline void ct_delete(const struct ct_entry *entry, const struct ct_key *ends, struct packet *packet)
{
	if (ct_own_pair(entry, ends, packet))
		bpf_map_delete_elem(MAP(ct), &packet->pair);
	bpf_map_delete_elem(MAP(ct), ends);
}

#endif
