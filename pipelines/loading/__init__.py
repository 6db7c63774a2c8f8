"""Load rows of files and queries into the store: read them, check them, and reject the wrong ones."""
