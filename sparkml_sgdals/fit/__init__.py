"""Learn a table: in one task, in blocks, by mini-batches, or many Params at once."""
