"""rle_tf: human pose regression with residual log-likelihood estimation, for Keras 3."""

__version__ = "0.1.0"
