"""Networks to try the compiler on. Not part of the installed package."""
