"""A stack in one file, and back from it."""
