"""Matching networks."""
