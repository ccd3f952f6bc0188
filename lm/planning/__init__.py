"""What a training run will need, predicted from its configuration: FLOPs, memory, disk space and time."""
