"""Text: corpora, tokens, the language model, and its training."""
