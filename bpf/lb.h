/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend answers for a service: the lookup and the choice, for whatever hook asks. The choice is a function of a
 * seed: a random one spreads, the same one stays with its backend while backends and shares stay as they are.
 *
 * A group is drawn by weight as if every cluster had its full share, and thrown away with the chance its cluster is
 * reduced by: what is kept has exactly the shares asked for, and where no cluster is reduced it is always kept. Instead of
 * what was thrown away one is drawn by the shares of all groups, at a cost that grows with their number. So the shares are
 * right whatever part of the service is out. Where all of it is out, nobody is left and the call is refused. */
#ifndef CLUSTERMESH_LB_H
#define CLUSTERMESH_LB_H

#include "report.h"

#define LB_MAX_BLOCKS 64 /* of groups: every cluster there can be */
#define LB_HALVINGS 6    /* to find one of them */
#define LB_ANY 0xffffffff /* lb_draw(): no limit */

/* How many slots of a group are looked at before it counts as having no backend. Userspace writes entry by entry, so a
 * slot may lead nowhere for a moment; up to this many backends, none that is there is ever missed. */
#define LB_SEARCHED 64

/* What a step says: go on with the address as it is, with the address it wrote, or refuse. */
enum verdict { CONTINUE, TRANSLATED, REJECT };

struct peer {
	struct address address;
	__be16 port;
};

/* A group, and where it stands. */
struct choice {
	__u16 block;
	__u16 position;
	__u16 slots;
	__u16 cluster_id;
};

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

static __always_inline __u16 lb_reduced(const struct lb_clusters *clusters, __u16 cluster_id)
{
	return clusters->reduced[cluster_id % LB_CLUSTERS];
}

static __always_inline struct lb_groups *lb_groups_at(__u32 service_id, __u16 block)
{
	struct lb_groups_key key = { .service_id = service_id, .block = block };

	return bpf_map_lookup_elem(MAP(lb_groups), &key);
}

/* The backend of this slot, if it may be given out. Its cluster is asked for once more: while groups are rewritten, a
 * slot may for a moment be of another cluster than its group says. */
static __always_inline struct lb_backend *lb_backend_at(const struct lb_clusters *clusters, __u32 service_id,
							__u16 group, __u16 slot)
{
	struct lb_slots_key key = { .service_id = service_id, .group = group, .block = slot / SLOTS_PER_BLOCK };
	struct lb_slots *slots = bpf_map_lookup_elem(MAP(lb_slots), &key);
	struct lb_backend *backend;
	__u32 id;

	if (!slots)
		return NULL;
	id = slots->backend_ids[slot % SLOTS_PER_BLOCK];
	backend = bpf_map_lookup_elem(MAP(lb_backends), &id);
	if (!backend || backend->state != BACKEND_ACTIVE || lb_reduced(clusters, backend->cluster_id) == LB_FULL)
		return NULL;
	return backend;
}

/* The first block whose weights, with those before it, go beyond `weight`. */
static __always_inline __u16 lb_block_of(const struct lb_service *service, __u32 weight)
{
	__u16 first = 0, last = (__u16)(service->groups - 1) / GROUPS_PER_BLOCK;

	for (__u32 halving = 0; halving < LB_HALVINGS && first < last; halving++) {
		__u16 middle = (first + last) / 2;
		struct lb_groups *block = lb_groups_at(service->service_id, middle);

		if (block && weight >= block->groups[GROUPS_PER_BLOCK - 1].weight_end)
			first = middle + 1;
		else
			last = middle;
	}
	return first;
}

/* The group that `weight` falls into; false where there is none. Comparing without branches keeps the verifier from
 * following each outcome. */
static __always_inline bool lb_group_of(const struct lb_service *service, __u32 weight, struct choice *choice)
{
	__u16 at = lb_block_of(service, weight);
	struct lb_groups *block = lb_groups_at(service->service_id, at);
	__u32 position = 0;

	if (!block)
		return false;
	for (__u32 i = 0; i < GROUPS_PER_BLOCK - 1; i++)
		position += ((__u64)block->groups[i].weight_end - 1 - weight) >> 63;
	choice->block = at;
	choice->position = position;
	choice->slots = block->groups[position].slots;
	choice->cluster_id = block->groups[position].cluster_id;
	return choice->slots;
}

static __always_inline __u16 lb_number(const struct choice *choice)
{
	return choice->block * GROUPS_PER_BLOCK + choice->position;
}

/* One draw: NULL where it fell on a cluster's missing share, or on nobody. */
static __always_inline struct lb_backend *lb_try(void *context, const struct lb_clusters *clusters,
						 const struct lb_service *service, __u32 *seed)
{
	struct lb_backend *backend;
	struct choice choice;
	__u16 reduced;

	if (!lb_group_of(service, lb_draw(seed, service->weight), &choice))
		return NULL;
	reduced = lb_reduced(clusters, choice.cluster_id);
	if (reduced && lb_draw(seed, LB_FULL) < reduced)
		return NULL;
	backend = lb_backend_at(clusters, service->service_id, lb_number(&choice), lb_draw(seed, choice.slots));
	if (!backend)
		report(context, REASON_PICK_RETRIED);
	return backend;
}

/* The last weight of a group chosen by weight and share, all of them read: each is taken over those before it by the part
 * of its share in all shares so far. False where no cluster has a share.
 *
 * The verifier must not learn what goes round, or it follows each path through all rounds: the sum begins anywhere and is
 * taken as a difference, the choice is made without a branch, and `groups` is read anew from the map. */
static __always_inline bool lb_weight_by_share(const struct lb_clusters *clusters,
					       const volatile struct lb_service *service, __u32 *seed, __u32 *chosen)
{
	__u64 random = (__u64)lb_draw(seed, LB_ANY) << 32 | 1, begin = random, end = begin;
	__u32 id = service->service_id, before = 0;

	*chosen = service->weight;
	for (__u32 at = 0; at < LB_MAX_BLOCKS; at++) {
		struct lb_groups *block = lb_groups_at(id, at);

		if (!block || at * GROUPS_PER_BLOCK >= service->groups)
			break;
#pragma unroll
		for (__u32 i = 0; i < GROUPS_PER_BLOCK; i++) {
			const struct lb_group *group = &block->groups[i];
			__u64 part = LB_FULL - lb_reduced(clusters, group->cluster_id);
			__u64 share = (group->weight_end - before) * part;
			__s64 is_taken;

			before = group->weight_end;
			end += share;
			is_taken = (__s64)(lb_shift(&random) % (end - begin) - share) >> 63;
			asm volatile("" : "+r"(is_taken)); /* or the compiler makes a branch of it */
			*chosen ^= (*chosen ^ before) & is_taken;
		}
	}
	return end != begin;
}

/* For when the first draw was in vain: a group by share, then its first usable backend from somewhere on. Everything is read
 * again, since it may just have been changed. */
static __always_inline struct lb_backend *lb_search(const struct lb_clusters *clusters,
						    const struct lb_service_key *key, __u32 *seed)
{
	struct lb_service *found = bpf_map_lookup_elem(MAP(lb_services), key), service;
	struct choice choice;
	__u32 weight, start;

	if (!found || !lb_weight_by_share(clusters, found, seed, &weight))
		return NULL;
	service = *found;
	if (!lb_group_of(&service, weight - 1, &choice))
		return NULL;
	start = lb_draw(seed, LB_ANY);
	for (__u32 step = 0; step < LB_SEARCHED; step++) {
		__u16 slot = (start + step) % choice.slots;
		struct lb_backend *backend = lb_backend_at(clusters, service.service_id, lb_number(&choice), slot);

		if (backend)
			return backend;
	}
	return NULL;
}

/* Turns a service's address into a backend's: CONTINUE where there is no such service, REJECT where nobody answers. */
static __always_inline enum verdict lb_translate(void *context, const struct lb_service_key *key, __u32 seed,
						 struct peer *to)
{
	struct lb_service *found = bpf_map_lookup_elem(MAP(lb_services), key), service;
	struct lb_clusters *clusters;
	struct lb_backend *backend;
	__u32 all = 0;

	if (!found)
		return CONTINUE;
	service = *found;
	clusters = bpf_map_lookup_elem(MAP(lb_clusters), &all);
	if (!clusters || !service.groups || !service.weight)
		return REJECT;
	backend = lb_try(context, clusters, &service, &seed);
	if (!backend)
		backend = lb_search(clusters, key, &seed);
	if (!backend)
		return REJECT;
	to->address = backend->address;
	to->port = backend->port;
	return TRANSLATED;
}

#endif
