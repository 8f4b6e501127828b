"""What this machine and installation can do, and what will fail on it, before anything fails."""
