"""Where training images come from, a file a format; each ends as a stream of `Identity`."""
