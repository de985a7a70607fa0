/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet as a program is given it, and how its bytes are read and written: the rest of the code does not ask which kind of
 * program it is part of. All of it is inlined, so that nothing is left of a frame when it runs. */
#ifndef CLUSTERMESH_FRAME_H
#define CLUSTERMESH_FRAME_H

#include <linux/if_ether.h>

#include "layouts.h"

struct frame {
	struct __sk_buff *skb;
};

static __always_inline struct frame of_skb(struct __sk_buff *skb)
{
	return (struct frame){ skb };
}

/* What helpers take. */
static __always_inline void *frame_context(struct frame frame)
{
	return frame.skb;
}

static __always_inline void *frame_data(struct frame frame)
{
	return (void *)(long)frame.skb->data;
}

static __always_inline void *frame_end(struct frame frame)
{
	return (void *)(long)frame.skb->data_end;
}

/* Has the first `size` bytes where they are read: 0, or why not. */
static __always_inline long frame_pull(struct frame frame, __u32 size)
{
	return bpf_skb_pull_data(frame.skb, size);
}

static __always_inline __be16 frame_protocol(struct frame frame)
{
	return frame.skb->protocol;
}

/* The device it came by. */
static __always_inline __u32 frame_device(struct frame frame)
{
	return frame.skb->ifindex;
}

/* What each of the packets is to have that this one is many of, 0 where it is one. */
static __always_inline __u32 frame_segments(struct frame frame)
{
	return frame.skb->gso_size;
}

/* 0, or what has failed; `flags` are for a checksum that a device computed over all of the packet. */
static __always_inline long frame_store(struct frame frame, __u32 offset, const void *from, __u32 size, __u64 flags)
{
	return bpf_skb_store_bytes(frame.skb, offset, from, size, flags);
}

/* A checksum of the transport's, after what it is of has changed by `change`. */
static __always_inline long frame_change_check(struct frame frame, __u32 offset, __u32 change, __u64 flags)
{
	return bpf_l4_csum_replace(frame.skb, offset, 0, change, flags);
}

#endif
