"""The log that every answer waits for, and the spool that it goes to while MariaDB is away."""
