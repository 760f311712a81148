"""A plan is carried out on many machines: workers do its jobs, this machine keeps the books."""
