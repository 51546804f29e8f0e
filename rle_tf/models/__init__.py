"""Backbones, and the regressor built on them."""
