"""Noise, with no network in it: how much of a latent is left, and in which order slots lose their noise."""
