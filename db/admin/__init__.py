"""Work of an administrator: databases, users and grants, retention, and erasing an entity."""
