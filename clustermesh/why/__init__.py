"""Why something is used or not: `held` and `etcd` look, `explain` judges (pure), `facts` is what was found."""
