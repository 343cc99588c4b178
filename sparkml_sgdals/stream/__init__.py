"""Learn a micro-batch, commit it once, and the job that a caller holds."""
