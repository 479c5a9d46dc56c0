"""The tagging page: plain ES modules, one style sheet, one vendored viewer; served by `lib.server.page`."""
