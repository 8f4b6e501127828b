"""`python -m fedgraft`, the same as `fedgraft`."""

from fedgraft.cli.main import main

main()
