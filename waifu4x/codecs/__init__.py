"""Bytes of files become samples and metadata, and the other way round; one file per concern."""
