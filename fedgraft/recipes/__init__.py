"""Settings of papers by name, one TOML file each: what is run, on what, and the figures that were published."""
