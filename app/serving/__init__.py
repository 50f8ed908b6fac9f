"""Loads exported networks and predicts with them."""
