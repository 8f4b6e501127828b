"""A run's typed configuration, options, the one-line notation, and the registries of the five extension points."""
