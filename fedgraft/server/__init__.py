"""The server's side: rounds, checkpoints and resume, evaluation, the run directory and reports."""
