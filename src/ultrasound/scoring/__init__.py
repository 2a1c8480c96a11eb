"""Scores of predictions, and pictures of them."""
