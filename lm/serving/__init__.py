"""Serve a trained model over HTTP: OpenAI's completions API, and a web page to try the model on."""
