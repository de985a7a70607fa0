/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where programs of packets put together what is too large for their stack: one at a time on each CPU. */
#ifndef CLUSTERMESH_SCRATCH_H
#define CLUSTERMESH_SCRATCH_H

#include "layouts.h"

enum { SCRATCH_QUOTED = 128 }; /* bytes of a packet that an ICMP error quotes */

struct ct_new {
	struct ct_key reply_key;
	struct ct_entry forward;
	struct ct_entry reply;
	__u8 quoted[SCRATCH_QUOTED];
};

DECLARE_MAP(ct_scratch, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ct_new, 1, 0);

static __always_inline struct ct_new *scratch(void)
{
	__u32 all = 0;

	return bpf_map_lookup_elem(MAP(ct_scratch), &all);
}

#endif
