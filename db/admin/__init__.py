"""What only an administrator does: databases, users and grants; retention; erasing an entity."""
