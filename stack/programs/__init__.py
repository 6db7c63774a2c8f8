"""The programs of a stack: what they are, how they are started, watched and stopped."""
