"""What every stage does: artifacts, command line, errors, seeds, devices, checkpoints."""
