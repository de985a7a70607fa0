/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What programs that go over sockets read of this kernel's own structures: libbpf finds each field by its name where the
 * program is loaded (CO-RE). Only libbpf can, and it needs a kernel that says what its structures are (BTF). */
#ifndef CLUSTERMESH_ITERATORS_H
#define CLUSTERMESH_ITERATORS_H

#include "address.h"

enum { STATE_CLOSED = 7 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sock_common {
	volatile unsigned char skc_state;
};

struct seq_file;
struct udp_sock;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

#endif
