"""From logits to text: samplers and the generation loop."""
