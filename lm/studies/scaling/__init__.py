"""The law by which the loss falls with parameters and tokens: its fit, its intervals, and its forecasts."""
