"""Pods join the node: the CNI plugin (a short-lived process), and the agent's side of it."""
