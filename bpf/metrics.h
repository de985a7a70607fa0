/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CLUSTERMESH_METRICS_H
#define CLUSTERMESH_METRICS_H

#include "layouts.h"

static __always_inline void count(enum reason reason)
{
	__u32 index = reason;
	__u64 *counter = bpf_map_lookup_elem(&metrics, &index);

	if (counter)
		*counter += 1;
}

#endif
