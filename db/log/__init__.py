"""The prediction log: ids, what services write into it, and reading it back."""
