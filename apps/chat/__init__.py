"""Where the chat in the terminal will live; `ondevice run` and `ondevice demo` are its elders."""
