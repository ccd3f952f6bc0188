"""The compiled path of the room above, and how kernels are compiled."""
