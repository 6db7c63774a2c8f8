"""The `evergreen` command. Each file has one command or a group of commands."""
