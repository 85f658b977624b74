"""Talk to a bundle in the terminal: `python -m ondevice.apps.chat BUNDLE`."""
