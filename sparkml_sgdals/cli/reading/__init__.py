"""Tables of ratings as strangers have them: what lies under a path, and Spark's reading of it."""
