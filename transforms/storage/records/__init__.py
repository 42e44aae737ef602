"""Records on disk: TFRecord frames, the wire format of `tf.train.Example`, and feature records."""
