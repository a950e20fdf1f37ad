"""Data sets: one reader per module, their `registry`, and the images file that all later stages read (`images`)."""
