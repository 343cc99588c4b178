"""The HTTP side of the service: endpoints, limits, answers, the page."""
