"""Train a candidate on a snapshot, and reach a verdict on it."""
