/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What happened: counted always, and told while somebody listens (`clustermesh node monitor`).
 *
 * A program that has something to tell asks for an event, fills in what it knows, and hands it over:
 *
 *	struct event *event = event_of(REASON_CONNECT, EVENT_LB);
 *
 *	if (event) {
 *		event->destination = ...;
 *		event_submit(event);
 *	}
 *
 * Nobody listens but for moments, so that all of this is one look at an array. */
#ifndef CLUSTERMESH_REPORT_H
#define CLUSTERMESH_REPORT_H

#include "frame.h"

static __always_inline void count(enum reason reason)
{
	__u32 index = reason;
	__u64 *counter = bpf_map_lookup_elem(MAP(metrics), &index);

	if (counter)
		*counter += 1;
}

/* Counted; and an event of which all but its head is zero, or NULL where nobody listens or there is no room for it. */
static __always_inline struct event *event_of(enum reason reason, enum event_type type)
{
	__u32 all = 0;
	struct events_wanted *wanted = bpf_map_lookup_elem(MAP(events_wanted), &all);
	struct event *event;
	__u64 now;

	count(reason);
	if (!wanted || !(wanted->types & 1U << type))
		return NULL;
	now = bpf_ktime_get_ns();
	if (now > wanted->until) {
		wanted->types = 0; /* who listened was killed */
		return NULL;
	}
	event = bpf_ringbuf_reserve(MAP(events), sizeof(*event), 0);
	if (!event) {
		count(REASON_EVENT_LOST);
		return NULL;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = now;
	event->cpu = bpf_get_smp_processor_id();
	event->reason = reason;
	event->type = type;
	return event;
}

/* On every path on which there is an event. It waits to be read: nobody is woken. */
static __always_inline void event_submit(struct event *event)
{
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/* Counted, and told with the packet's head, of which the reader makes addresses and ports. */
static __always_inline void report_packet(struct __sk_buff *skb, enum reason reason, enum event_type type)
{
	struct event *event = event_of(reason, type);

	if (!event)
		return;
	event->ifindex = skb->ifindex;
	event->cookie = bpf_get_socket_cookie(skb);
	/* As much of it as there is. */
	if (!bpf_skb_load_bytes_relative(skb, 0, event->head, EVENT_HEAD, BPF_HDR_START_NET))
		event->head_size = EVENT_HEAD;
	else if (!bpf_skb_load_bytes_relative(skb, 0, event->head, 40, BPF_HDR_START_NET))
		event->head_size = 40;
	else if (!bpf_skb_load_bytes_relative(skb, 0, event->head, 28, BPF_HDR_START_NET))
		event->head_size = 28;
	else if (!bpf_skb_load_bytes_relative(skb, 0, event->head, 20, BPF_HDR_START_NET))
		event->head_size = 20;
	event_submit(event);
}

enum { FRAME_HEAD = 40 }; /* less than the shortest frame of a wire has */

/* The same of a frame. */
static __always_inline void report_frame(struct frame frame, enum reason reason, enum event_type type)
{
	struct event *event = event_of(reason, type);
	void *head = frame_at(frame, ETH_HLEN, FRAME_HEAD);

	if (!event)
		return;
	event->ifindex = frame_device(frame);
	if (head) {
		__builtin_memcpy(event->head, head, FRAME_HEAD);
		event->head_size = FRAME_HEAD;
	}
	event_submit(event);
}

#endif
