"""Ratings to try things with: MovieLens as Parquet, and a file replayed as a stream (no Spark)."""
