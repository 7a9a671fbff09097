"""The ops' cases, one file per room."""
