"""Loss, optimizer, schedules, batches, checkpoints, evaluation and the loop."""
