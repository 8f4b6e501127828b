"""Everything on disk: run directories, personal state, splits, the folders of sites and servers."""
