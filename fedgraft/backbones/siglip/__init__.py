"""SigLIP and SigLIP 2 (Zhai et al. 2023, Tschannen et al. 2025) from Hugging Face folders."""
