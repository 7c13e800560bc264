"""Editing of a given image from one class to another."""
