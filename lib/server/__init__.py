"""The server layer: stock routes made non-blocking and strict, errors that say what to do, closed by default."""
