"""The ablation table: paired comparisons of variants, compute multipliers, and the forest plot."""
