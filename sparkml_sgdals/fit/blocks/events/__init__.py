"""Tables of events in blocks."""
