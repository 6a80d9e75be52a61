"""A small network trained on scikit-learn's 8×8 digits, then pruned and fine-tuned."""
