"""Text towers of BERT's shape (Devlin et al. 2019), shared by several families."""
