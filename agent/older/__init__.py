"""The agent of layout v1, as far as it is followed by this one or follows it. Once nobody runs it any more, this folder
goes, with what names it in `agent.bpf` (loader, exchange), `bpf/downgrade.bpf.c` and `clustermesh node
prepare-downgrade`.
"""
