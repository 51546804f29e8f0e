"""From files to batches: sources (one file each), augmentation and the tf.data pipeline."""
