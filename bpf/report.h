/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef CLUSTERMESH_REPORT_H
#define CLUSTERMESH_REPORT_H

#include "layouts.h"

/* `context` is the program's own: what a flow event will be made from. Today, what happened is only counted. */
static __always_inline void report(void *context, enum reason reason)
{
	__u32 index = reason;
	__u64 *counter = bpf_map_lookup_elem(MAP(metrics), &index);

	(void)context;
	if (counter)
		*counter += 1;
}

#endif
