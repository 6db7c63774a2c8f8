"""The prediction log, which every answer waits for, and the spool that replaces it while MariaDB is away."""
