"""What a site trains: one file a method."""
