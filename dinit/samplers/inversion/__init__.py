"""From an image to its noise: solvers on increasing times, approximate or exact."""
