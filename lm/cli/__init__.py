"""The command line, `lm VERB`: one module per verb. The stages of the pipeline are not verbs; DVC runs them."""
