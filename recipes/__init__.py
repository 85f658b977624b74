"""Recipes that ship with the package, and the one small model among them."""
