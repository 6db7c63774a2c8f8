"""Whether a snapshot can be learned from."""
