"""Sources of text: the built-in story grammar, the Hugging Face hub, web downloads and local files."""
