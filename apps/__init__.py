"""Applications over the toolchain, one folder each; they import anything, nothing imports them."""
