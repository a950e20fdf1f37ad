"""What stages exchange: splits and draws, feature files, rows on disk, and the readers of data sets."""
