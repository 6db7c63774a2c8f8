"""Daily duties, and the deletion of an entity from every place."""
