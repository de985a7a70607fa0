"""Why something is used or not: `facts` is what `held` and `etcd` found, `explain` and `backends` judge it (pure)."""
