"""Figures of the agent and of the mesh's core, each beside what it must reach: `make bench-middle`.

In the frame of tests/bench/frame.py: a file here is a topic and exports

    FIGURES = {"event_to_map_ms": event_to_map}

A function takes nothing, may be async, and returns the samples of its figure, one for each run; or, where one run
gives several figures, {name: samples}, under a key that all their names begin with. The end of a name is its unit.
"""
