"""Where text comes from: the story grammar, hub and web downloads, local files."""
