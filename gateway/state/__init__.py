"""The one file of state: an SQLite database, opened, kept and written to."""
