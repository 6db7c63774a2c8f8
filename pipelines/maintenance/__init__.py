"""What is done every night, and forgetting an entity everywhere."""
