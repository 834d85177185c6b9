"""Images: the data sets, the classifier, and its training."""
