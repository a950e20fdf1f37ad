"""Fine-grained embeddings from coarse labels: a superclass-conditional Gaussian mixture (Ni et al., ICLR 2022)."""
