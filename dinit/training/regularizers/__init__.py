"""Condition noise, token routing and representation alignment."""
