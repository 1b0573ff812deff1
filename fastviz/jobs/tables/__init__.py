"""A job on disk: the schema of its tables, how they are written and read, and which inputs are done."""
