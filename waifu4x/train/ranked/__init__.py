"""RankSRGAN's ranker: what it learns from, and how."""
