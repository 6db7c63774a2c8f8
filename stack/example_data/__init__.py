"""Generated example data, in the format of a user's files."""
