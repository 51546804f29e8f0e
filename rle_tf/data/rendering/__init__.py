"""Rendered people. No TensorFlow here: worker processes start by importing these modules."""
