"""What a site trains and how it is aggregated, one file a method."""
