"""Development tools, run from the repository's root as `python -m tools.<name>`; not part of the installed package."""
