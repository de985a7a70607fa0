/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a step over a packet says: a verdict of the kernel's, or why the packet is dropped. Packets are dropped in this file and
 * nowhere else, so that none is without a reason: entry points end with finish(), or for frames finish_frame(). */
#ifndef CLUSTERMESH_DROP_H
#define CLUSTERMESH_DROP_H

#include <linux/pkt_cls.h>

#include "report.h"

/* "Not mine, ask the next": TCX_NEXT under tcx, and under clsact the next filter. TC_ACT_OK would end the chain. */
#define NEXT TC_ACT_UNSPEC

enum { DROPPED = 256 }; /* beyond all verdicts: a reason is added */

static __always_inline int dropped(enum reason reason)
{
	return DROPPED + reason;
}

static __always_inline int finish(struct __sk_buff *skb, int said)
{
	if (said < DROPPED)
		return said;
	report_packet(skb, said - DROPPED, EVENT_DROP);
	return TC_ACT_SHOT;
}

static __always_inline int finish_frame(struct xdp_md *xdp, int said)
{
	if (said < DROPPED)
		return said;
	report_frame(of_xdp(xdp), said - DROPPED, EVENT_DROP);
	return XDP_DROP;
}

#endif
