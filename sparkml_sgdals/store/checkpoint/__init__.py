"""Spark's checkpoint under a model path: what it holds, and whether it is that of the model."""
