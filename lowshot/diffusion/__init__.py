"""Labels propagated over a graph of neighbours."""
