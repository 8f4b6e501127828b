"""`python -m fedgraft.device` is the command `fedgraft-device`."""

from fedgraft.device.commands import main

main()
