"""Generated example worlds, in the format of a user's files."""
