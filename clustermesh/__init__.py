"""The control plane of a cluster mesh, and the vocabulary the node agent borrows. Read `clustermesh.model` first."""

__version__ = "0.1.0"
