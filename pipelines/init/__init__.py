"""Guess a first model file from a file of rows."""
