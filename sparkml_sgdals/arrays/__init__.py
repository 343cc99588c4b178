"""Ids, ratings and sorts as plain arrays: what everything above is made of (no Spark)."""
