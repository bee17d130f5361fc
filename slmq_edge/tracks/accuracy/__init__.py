"""The accuracy track: the same questions on every runtime."""
