"""All code that reads or writes MariaDB."""
