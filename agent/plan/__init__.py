"""What this node's kernel should hold, from what the mesh knows. Pure: no kernel, no netlink, no clock."""
