"""A job on disk: the tables' schema, writing and reading them, and which inputs are done."""
