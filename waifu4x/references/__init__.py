"""Upscaling by similar pictures (CrossNet, SRNTT)."""
