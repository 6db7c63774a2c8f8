"""The programs of a stack: their definition, start, health and end."""
