"""MariaDB: all that reads or writes it."""
