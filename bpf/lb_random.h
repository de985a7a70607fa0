/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The choice by weights and shares, a function of a seed.
 *
 * A group is drawn by weight as if every cluster had its full share, and thrown away with the chance its cluster is
 * reduced by: what is kept has exactly the shares asked for, and where no cluster is reduced it is always kept. Instead of
 * what was thrown away one is drawn by the shares of all groups, at a cost that grows with their number. So the shares are
 * right whatever part of the service is out. Where all of it is out, nobody is left and the call is refused. */
#ifndef CLUSTERMESH_LB_RANDOM_H
#define CLUSTERMESH_LB_RANDOM_H

#include "lb_backend.h"

#define LB_MAX_BLOCKS 64 /* of groups */
#define LB_HALVINGS 6    /* to find one of them */
#define LB_OUT 0xffffffff /* no backend has this id */
#define LB_NONE (~0ULL)   /* neither is there such a share, nor such a state */

/* How many slots of a group are looked at before it counts as having no backend. Userspace writes entry by entry, so a
 * slot may lead nowhere for a moment; up to this many backends, none that is there is ever missed. */
#define LB_SEARCHED 64

static __always_inline __u32 lb_mix(__u32 hash)
{
	hash = (hash ^ (hash >> 16)) * 0x85ebca6b; /* the finalizer of MurmurHash3 */
	hash = (hash ^ (hash >> 13)) * 0xc2b2ae35;
	return hash ^ (hash >> 16);
}

/* The next number below `limit`, which is not 0, of the sequence that `seed` began. */
static __always_inline __u32 lb_draw(__u32 *seed, __u32 limit)
{
	*seed += 0x9e3779b9;
	return ((__u64)lb_mix(*seed) * limit) >> 32;
}

/* xorshift64, for many numbers beyond 32 bits; the seed is not 0. */
static __always_inline __u64 lb_shift(__u64 *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* The first block whose weights, with those before it, go beyond `weight`. */
SUBPROGRAM __u32 lb_block_of(__u32 service_id, __u32 groups, __u32 weight)
{
	__u32 first = 0, last = (groups - 1) / GROUPS_PER_BLOCK;

	for (__u32 halving = 0; halving < LB_HALVINGS && first < last; halving++) {
		__u32 middle = (first + last) / 2;
		struct lb_groups *block = lb_groups_at(service_id, middle);

		if (block && weight >= block->groups[GROUPS_PER_BLOCK - 1].weight_end)
			first = middle + 1;
		else
			last = middle;
	}
	return first;
}

/* One draw: the id in the slot it fell on, LB_OUT where that is of a cluster's missing share, or of nobody. `where` that is:
 * the group in the upper half, the block of slots in the lower. Comparing without branches keeps the verifier from following
 * each outcome. */
static __always_inline __u32 lb_drawn(const struct lb_clusters *clusters, const struct lb_service *service, __u32 *seed,
				      __u32 *where)
{
	__u32 weight = lb_draw(seed, service->weight), position = 0, at = 0;
	struct lb_groups *block;
	__u16 reduced, slots;

	if (service->groups > GROUPS_PER_BLOCK)
		at = lb_block_of(service->service_id, service->groups, weight);
	block = lb_groups_at(service->service_id, at);
	if (!block)
		return LB_OUT;
	for (__u32 i = 0; i < GROUPS_PER_BLOCK - 1; i++)
		position += ((__u64)block->groups[i].weight_end - 1 - weight) >> 63;
	reduced = lb_reduced(clusters, block->groups[position].cluster_id);
	slots = block->groups[position].slots;
	if (!slots || (reduced && lb_draw(seed, LB_FULL) < reduced))
		return LB_OUT;
	at = at * GROUPS_PER_BLOCK + position;
	slots = lb_draw(seed, slots);
	*where = at << 16 | slots / SLOTS_PER_BLOCK;
	return lb_id_at(service->service_id, at, slots);
}

/* A part taken over those before it with the chance it has in all so far: the mask of the place it is kept in. The
 * choice is made without a branch. */
static __always_inline __u32 lb_takes(__u64 *random, __u64 share, __u64 sum)
{
	__s64 beyond = lb_shift(random) % sum - share;

	asm volatile("" : "+r"(beyond)); /* or the compiler makes a branch of it */
	return beyond >> 63;
}

static __always_inline __u64 lb_share(const struct lb_clusters *clusters, const struct lb_group *group, __u32 before)
{
	return (__u64)(group->weight_end - before) * (LB_FULL - lb_reduced(clusters, group->cluster_id));
}

static __always_inline __u32 lb_weight_before(__u32 service_id, __u32 block)
{
	struct lb_groups *before = block ? lb_groups_at(service_id, block - 1) : NULL;

	return before ? before->groups[GROUPS_PER_BLOCK - 1].weight_end : 0;
}

/* What the groups of this block have together, LB_NONE where there is no such block. */
SUBPROGRAM __u64 lb_share_of_block(__u32 service_id, __u32 block)
{
	struct lb_groups *groups = lb_groups_at(service_id, block);
	struct lb_clusters *clusters = lb_all_clusters();
	__u32 before = lb_weight_before(service_id, block);
	__u64 share = 0;

	if (!groups || !clusters)
		return LB_NONE;
#pragma unroll
	for (__u32 i = 0; i < GROUPS_PER_BLOCK; i++) {
		share += lb_share(clusters, &groups->groups[i], before);
		before = groups->groups[i].weight_end;
	}
	return share;
}

/* A group of this block by share: its number in the service, in the upper half, and how many slots it has. */
SUBPROGRAM __u32 lb_group_by_share(__u32 service_id, __u32 block, __u64 random)
{
	struct lb_groups *groups = lb_groups_at(service_id, block);
	struct lb_clusters *clusters = lb_all_clusters();
	__u32 before = lb_weight_before(service_id, block), position = 0;
	__u64 sum = 0;

	if (!groups || !clusters)
		return 0;
#pragma unroll
	for (__u32 i = 0; i < GROUPS_PER_BLOCK; i++) {
		__u64 share = lb_share(clusters, &groups->groups[i], before);

		sum += share;
		before = groups->groups[i].weight_end;
		position ^= (position ^ i) & lb_takes(&random, share, sum);
	}
	position %= GROUPS_PER_BLOCK;
	return (block * GROUPS_PER_BLOCK + position) << 16 | groups->groups[position].slots;
}

/* The id in this slot, its state above it: LB_NONE where it leads nowhere. */
SUBPROGRAM __u64 lb_backend_in(__u32 service_id, __u32 group, __u32 slot)
{
	struct lb_clusters *clusters = lb_all_clusters();
	__u32 id = lb_id_at(service_id, group, slot);
	struct lb_backend *backend = clusters ? lb_backend_of(clusters, id) : NULL;

	return backend ? (__u64)backend->state << 32 | id : LB_NONE;
}

/* A backend of this group's slots, from `start` on: the first that is active, or where there is none another one, its slot
 * above its id; 0 where there is nobody. Who is in a slot is given: it terminates and nobody else is left, or it rests by a
 * change whose other backends are about to be written. Which of them is kept without a branch: the verifier goes one way
 * round. */
static __always_inline __u64 lb_first(__u32 service_id, __u32 group, __u32 slots, __u32 start)
{
	__u64 other = 0;

	for (__u32 step = 0; step < LB_SEARCHED && slots; step++) {
		__u64 slot = (start + step) % slots, found = lb_backend_in(service_id, group, slot), is_none;

		if (found >> 32 == BACKEND_ACTIVE)
			return slot << 32 | (__u32)found;
		is_none = found >> 63;
		asm volatile("" : "+r"(is_none));
		other ^= (other ^ (slot << 32 | (__u32)found)) & (is_none - 1);
	}
	return other;
}

/* For when the first draw was in vain: a group by share, all of them read, then its first usable backend from somewhere
 * on. A block is chosen, then one of its groups. What is read may just have been changed, or be gone: lb_pick() looks
 * again. An id, 0 where none is found, and above it the place of its slot, as in lb_drawn(); LB_NONE where nobody has a
 * share. */
SUBPROGRAM __u64 lb_search(__u32 service_id, __u32 seed)
{
	__u64 random = (__u64)seed << 32 | 1, sum = 0, found;
	__u32 chosen = 0, group;

	for (__u32 at = 0; at < LB_MAX_BLOCKS; at++) {
		__u64 share = lb_share_of_block(service_id, at);

		if (share == LB_NONE)
			break;
		sum += share;
		chosen ^= (chosen ^ at) & lb_takes(&random, share, sum);
	}
	if (!sum)
		return LB_NONE;
	group = lb_group_by_share(service_id, chosen, lb_shift(&random));
	found = lb_first(service_id, group >> 16, (__u16)group, lb_shift(&random) >> 32);
	return (__u64)((group >> 16 << 16) | (found >> 32) / SLOTS_PER_BLOCK) << 32 | (__u32)found;
}

#endif
