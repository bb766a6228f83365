"""What spreading a residual over layers does to an edit: the analyses of BLUE (arXiv:2502.03748), section 4."""
