"""From a snapshot to a candidate and the verdict on it."""
