"""Training of networks that take a reference: CrossNet and SRNTT."""
