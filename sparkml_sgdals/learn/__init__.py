"""How a table or a micro-batch in memory changes a model (no Spark)."""
