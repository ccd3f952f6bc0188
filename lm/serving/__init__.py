"""A trained model on the web: OpenAI's API for completions, and a page to try it on."""
