"""Learn a table larger than one task: blocks keep ratings in files, and exchange factors."""
