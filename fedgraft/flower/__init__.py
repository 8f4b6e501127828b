"""What travels between server and sites as Flower records, and the one place that imports Flower's internals."""
