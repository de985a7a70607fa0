"""Other clusters as this one sees them: one session per cluster, what each may say, and services merged over all."""
