"""Schedule templates, best first; the fallback, which always applies, last."""
