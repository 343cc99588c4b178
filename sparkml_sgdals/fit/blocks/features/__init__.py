"""Features of ids in a fit in blocks: how they reach blocks, what is learned of them."""
