"""What a model has learned: loss on whole documents, by kind of token, minimal pairs, calibration, judged samples."""
