"""The `evergreen` command: one file a group of commands."""
