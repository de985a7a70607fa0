"""Sockets whose backend went: found in all network namespaces of this node, and ended or moved."""
