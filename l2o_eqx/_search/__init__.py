"""Guided policy search, piece by piece: what is sampled, what controls it, what learns from it."""
