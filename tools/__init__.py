"""What makes things that the package ships; nothing that it runs."""
