"""Joining clusters that are Kubernetes: what is read of each, what is checked, and what is written into them."""
