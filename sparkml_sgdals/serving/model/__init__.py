"""The versions that are served, as arrays, and what can be asked of them."""
