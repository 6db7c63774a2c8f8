"""The programs of a stack: definition, start, monitoring and stop."""
