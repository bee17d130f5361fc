"""Other machines: how they are named, reached, and given what they are to measure."""
