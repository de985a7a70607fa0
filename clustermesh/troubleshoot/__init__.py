"""What stands between this cluster and each of its peers: `gather` asks, `checks` judges, `facts` is what is asked."""
