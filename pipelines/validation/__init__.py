"""Checks that decide whether a training may learn from a snapshot."""
