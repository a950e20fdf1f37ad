"""Data sets: one reader a file, one registry (`readers`), one images file that every later stage reads (`images`)."""
