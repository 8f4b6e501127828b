"""Site-side transforms, aggregation rules and steps, one file each."""
