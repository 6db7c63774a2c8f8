"""Generated worlds, in the shape of files that a user would bring."""
