"""Loss, optimizers, schedules, batches, checkpoints, evaluation and the training loop."""
