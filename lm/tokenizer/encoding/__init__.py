"""Turning text into token ids and back."""
