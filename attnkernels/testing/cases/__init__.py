"""The ops' cases, one file per op."""
