"""Backup of a stack into one file, and restore from it."""
