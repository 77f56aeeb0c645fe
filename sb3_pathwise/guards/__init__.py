"""Guards: what is refused, stopped or warned about."""
