"""A client of the Kubernetes API that lists and watches: one `follow` for each kind, all on one `KubeClient`.

It knows nothing of meshes: what an object is, and what is kept of it, is said by the `Resource` it is given.
"""
