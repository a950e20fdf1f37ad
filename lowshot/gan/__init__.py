"""Class-conditional GANs that are fine-tuned on a few shots (Beckham et al., arXiv 2203.16662)."""
