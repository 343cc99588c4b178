"""Candidates of a grid learn from one stream, and the worst are dropped."""
