"""The result on disk: what each table of a run holds."""
