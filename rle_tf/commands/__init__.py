"""What `rle-tf` does, a function a verb; `rle_tf.cli` makes commands of them."""
