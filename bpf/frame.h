/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet as a program is given it, and how its bytes are read and written: the rest of the code does not ask which kind of
 * program it is part of. All of it is inlined, so that nothing is left of a frame when it runs. */
#ifndef CLUSTERMESH_FRAME_H
#define CLUSTERMESH_FRAME_H

#include <linux/if_ether.h>

#include "layouts.h"

struct frame {
	void *context; /* what helpers take */
	bool is_xdp;   /* as the device has it; else as the stack does (tc) */
};

static __always_inline struct frame of_skb(struct __sk_buff *skb)
{
	return (struct frame){ skb, false };
}

static __always_inline struct frame of_xdp(struct xdp_md *xdp)
{
	return (struct frame){ xdp, true };
}

static __always_inline struct __sk_buff *skb_of(struct frame frame)
{
	return frame.context;
}

static __always_inline struct xdp_md *xdp_of(struct frame frame)
{
	return frame.context;
}

static __always_inline void *frame_data(struct frame frame)
{
	return (void *)(long)(frame.is_xdp ? xdp_of(frame)->data : skb_of(frame)->data);
}

static __always_inline void *frame_end(struct frame frame)
{
	return (void *)(long)(frame.is_xdp ? xdp_of(frame)->data_end : skb_of(frame)->data_end);
}

/* `size` bytes from `offset` on, where they are at hand. */
static __always_inline void *frame_at(struct frame frame, __u32 offset, __u32 size)
{
	void *at = frame_data(frame) + offset;

	asm volatile("" : "+r"(at)); /* or the compiler checks another sum than it uses */
	return at + size > frame_end(frame) ? NULL : at;
}

enum { FARTHEST = 0x3ff };

/* `size` bytes from `offset` on, NULL where the packet has no such, or further back than is looked. */
static __always_inline void *header(struct frame frame, __u32 offset, __u32 size)
{
	void *at;

	if (offset > FARTHEST)
		return NULL;
	asm volatile("" : "+r"(offset)); /* or the compiler leaves out what the verifier needs */
	offset &= FARTHEST;
	at = frame_at(frame, offset, size);
	if (at || frame.is_xdp)
		return at;
	return bpf_skb_pull_data(skb_of(frame), offset + size) ? NULL : frame_at(frame, offset, size);
}

/* All bytes of it, from its link-layer's header on. */
static __always_inline __u32 frame_size(struct frame frame)
{
	return frame.is_xdp ? frame_end(frame) - frame_data(frame) : skb_of(frame)->len;
}

/* The network's protocol. */
static __always_inline __be16 frame_protocol(struct frame frame)
{
	struct ethhdr *link;

	if (!frame.is_xdp)
		return skb_of(frame)->protocol;
	link = frame_at(frame, 0, sizeof(*link));
	return link ? link->h_proto : 0;
}

/* The device it came by. */
static __always_inline __u32 frame_device(struct frame frame)
{
	return frame.is_xdp ? xdp_of(frame)->ingress_ifindex : skb_of(frame)->ifindex;
}

/* What each of the packets is to have that this one is many of, 0 where it is one. */
static __always_inline __u32 frame_segments(struct frame frame)
{
	return frame.is_xdp ? 0 : skb_of(frame)->gso_size;
}

/* `size` bytes: 0, or what has failed. `flags` are for a checksum that a device computed over all of it. */
static __always_inline long frame_store(struct frame frame, __u32 offset, const void *from, __u32 size, __u64 flags)
{
	const __u16 *word = from;
	__u16 *at;

	if (!frame.is_xdp)
		return bpf_skb_store_bytes(skb_of(frame), offset, from, size, flags);
	at = header(frame, offset, size);
	if (!at)
		return -1;
#pragma unroll
	for (__u32 i = 0; i < size / sizeof(*word); i++)
		at[i] = word[i];
	if (size % sizeof(*word))
		((__u8 *)at)[size - 1] = ((const __u8 *)from)[size - 1];
	return 0;
}

#endif
