"""Models for other programs, and back: Hugging Face folders and GGUF files."""
