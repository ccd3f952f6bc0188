"""The page that shows a run of the pipeline, from its data to its scaling law."""
