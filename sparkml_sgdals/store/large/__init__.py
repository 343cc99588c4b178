"""A model that no process holds: versions in runs that tasks wrote, read where they lie."""
