"""The database, change by change. `app/store/migrate.py` runs these; file names tell the day and the change."""
