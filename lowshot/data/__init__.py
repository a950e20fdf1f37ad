"""Data that stages exchange: splits and draws, feature files, matrices on disk; and the data set readers."""
