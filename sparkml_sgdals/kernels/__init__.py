"""The equations, compiled: pure functions of arrays, each with a reference in tests (no Spark)."""
