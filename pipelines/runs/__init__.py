"""A training run: its row, and the snapshot that it learns from."""
