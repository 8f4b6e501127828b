"""A run's typed configuration, options, the one-line notation, and the registry of the five doors."""
