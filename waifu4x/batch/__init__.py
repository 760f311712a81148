"""A folder becomes a folder: what is to be done is planned first, then done, and noted."""
