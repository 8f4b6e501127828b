"""Contract tests of the five doors over every registered entry, `pytest --pyargs fedgraft.testing`, and fake grids."""
