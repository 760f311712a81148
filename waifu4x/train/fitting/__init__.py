"""Models that are fitted in minutes, not trained: A+ and ScSR."""
