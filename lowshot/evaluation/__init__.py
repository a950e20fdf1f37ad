"""The low-shot benchmark, few-shot episodes, selection of settings, and predictions."""
