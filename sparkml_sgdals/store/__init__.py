"""A model on shared storage: versions, commits, leases, saved models (no Spark)."""
