"""Exchange models with other programs: write Hugging Face folders and GGUF files, and read Hugging Face folders."""
