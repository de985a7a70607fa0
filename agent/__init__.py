"""The node agent: folds what all clusters say into what this node's kernel must hold, and keeps the two the same.

Read in this order: `main` (the wiring), `engine` (the loop), `plan_services` and `plan_nodes` (pure: state -> desired
entries), `kernel` (the targets and their order), `clustermesh.reconcile` (desired -> diff -> apply).
"""
