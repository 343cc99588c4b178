"""Equations of events: what is drawn, filtered, ranked, and fitted to whole tables."""
