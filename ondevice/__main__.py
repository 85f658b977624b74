"""`python -m ondevice`, the same as the `ondevice` script."""

from ondevice.cli.main import main

main()
