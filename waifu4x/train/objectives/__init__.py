"""What a network is trained for: losses, and the networks that judge."""
