"""Learn a table larger than one task: blocks of ids exchange factors by files and messages."""
