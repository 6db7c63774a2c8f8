"""A first model file, guessed from a file of rows."""
