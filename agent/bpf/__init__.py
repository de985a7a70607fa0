"""The eBPF datapath: layouts shared with bpf/, raw system calls, the loader and the feature probe."""
