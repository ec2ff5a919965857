"""The one schema, its loading with file:line:column errors, and the resolution of revisions."""
