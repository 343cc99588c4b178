"""What a model holds between ratings, and what can be said of it (no Spark)."""
