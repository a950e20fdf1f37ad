"""From results files to tables, figures and one HTML page."""
