"""The Flower app's two components, both from the installed package fedgraft."""
