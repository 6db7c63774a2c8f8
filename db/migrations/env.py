"""The entry point of Alembic. `db.admin.bootstrap.upgrade` calls it with a connection. There is no alembic.ini."""

from alembic import context

from db.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
