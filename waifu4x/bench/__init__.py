"""Measuring: pictures of known truth in, the papers' figures out."""
