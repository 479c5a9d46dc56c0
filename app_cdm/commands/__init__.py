"""One command a file; each adds its options to a parser and runs them."""
