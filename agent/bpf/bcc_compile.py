"""Compiles eBPF programs with BCC, in a process of its own: BCC is Debian's Python's, and LLVM takes 130 MB.

Run as /usr/bin/python3 -I bcc_compile.py SOURCE FLAG..., needs nothing of this project, and prints {function: code in
base64}.
BCC looks for kernel headers under the running kernel's name only. The programs read none of the kernel's structures, so
that headers of any version do: where there are none of that name, others are put in their place, in a mount namespace
of this process.
"""

import base64
import ctypes
import json
import os
import sys
from glob import glob

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MODULES = "/lib/modules"
_KERNEL_HEADERS = "/usr/src/linux-headers-*"


def show_headers() -> None:
    """Have BCC find kernel headers; SystemExit where there are none."""
    release = os.uname().release
    if os.path.isdir(f"{_MODULES}/{release}/build/include") or os.path.exists("/sys/kernel/kheaders.tar.xz"):
        return
    found = [
        (build, build[: build.rindex("-")] + "-common")
        for build in sorted(glob(_KERNEL_HEADERS), reverse=True)
        if not build.endswith("-common") and os.path.isdir(build[: build.rindex("-")] + "-common")
    ]
    if not found:
        sys.exit(f"no kernel headers, neither {_MODULES}/{release}/build nor {_KERNEL_HEADERS}: install linux-headers")
    libc = ctypes.CDLL(None, use_errno=True)
    os.makedirs(_MODULES, exist_ok=True)
    for result in (
        libc.unshare(_CLONE_NEWNS),
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        libc.mount(b"none", _MODULES.encode(), b"tmpfs", 0, None),
    ):
        if result != 0:
            sys.exit(f"kernel headers cannot be shown to BCC: {os.strerror(ctypes.get_errno())}")
    os.mkdir(f"{_MODULES}/{release}")
    for name, target in zip(("build", "source"), found[0], strict=True):
        os.symlink(target, f"{_MODULES}/{release}/{name}")


def main() -> None:
    show_headers()
    try:
        from bcc import BPF, lib  # type: ignore[import-not-found]
    except ImportError:
        sys.exit("BCC is not installed for /usr/bin/python3: install it (Debian: python3-bpfcc)")
    source, *flags = sys.argv[1:]
    compiled = BPF(src_file=source, cflags=flags)
    names = [lib.bpf_function_name(compiled.module, at) for at in range(lib.bpf_num_functions(compiled.module))]
    print(json.dumps({name.decode(): base64.b64encode(compiled.dump_func(name)).decode() for name in names}))


if __name__ == "__main__":
    main()
