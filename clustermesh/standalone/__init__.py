"""A cluster that is a folder: its files, joining two of them, and what was joined."""
