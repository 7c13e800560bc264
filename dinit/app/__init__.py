"""Page of `dinit app`: requests, their runs and their pictures; `dinit.app.page` is the layout."""
