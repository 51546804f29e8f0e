"""`python -m rle_tf`: the command line."""

from rle_tf.cli import main

main()
