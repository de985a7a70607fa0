"""Conntrack of the packet programs, from outside: what is over is collected, what there is is told."""
