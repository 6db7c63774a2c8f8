"""Rows of files and queries into the store: read, checked, and refused where they are wrong."""
