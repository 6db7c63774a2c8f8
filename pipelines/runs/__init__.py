"""Training runs and their snapshots."""
