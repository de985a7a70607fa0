"""The datapath beside kube-proxy's: `make bench-datapath` (tests/bench/frame.py says how figures are named and kept).

    client pod ---- node ---- ten backend pods     one such row for each variant, all of them there at the same time
    10.64.0.2       the       10.65.1.1 to .10
                    variant

A round goes over all variants by turns, in an order of its own, with requests to the same services; what it says of a
variant is relative to the direct connection (the client asks the backends themselves) of that round.
"""
