"""The equations, compiled: arrays in, arrays out, each with a slow reference in tests (no Spark).

Shapes and types used throughout: `users` and `items` are int32 rows into the factor arrays of
their side; `ratings` and `weights` are float32; `mean` and `var` are C-contiguous float32 of
shape (ids, rank + 1), column 0 the bias and the others the features. `weights` of size 0 stands
for all ones. Factor arrays are changed in place.

Callers check that every index fits (`check_rows`): inside a kernel there are no bounds.
The equations are those of docs/algorithm.md, numbered there.
"""
