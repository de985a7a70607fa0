"""The node agent: folds what all clusters say into what this node's kernel must hold, and keeps the two the same.

Read in this order: `main` (the wiring), `domains.domain` (the loop), `domains.domains` (what there is to look after),
`plan` (pure: state -> desired entries), `targets` (the kernel's tables), `clustermesh.reconcile` (desired -> diff ->
apply).
"""
