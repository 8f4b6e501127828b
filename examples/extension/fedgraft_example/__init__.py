"""What a package may add to fedgraft: one file behind each door."""
