"""Ratings posted to the service, durable before they are acknowledged."""
