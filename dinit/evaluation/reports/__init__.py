"""Reports of scores with their protocol, as JSON and as an HTML page."""
