"""Adoption: a pretrained language model is given another gate."""
